"""The third part of gpu.py: trials that share a GPU, heads, and generated texts.

Each trial is a process with its part of the memory. They warm up, wait for each other, and take the
same steps. With MPS, where this user may start it, their kernels run at the same time; without, the
GPU changes between processes."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gpu_shapes import (
    device,
    has_gpu,
    now,
    open_trial,
    start_loop,
    take_steps,
    write_base,
    write_rows,
)

from medray.config.trial import ModelOptions, Precision
from medray.engines.transformers import TransformersEngine
from medray.models import sources
from medray.models.build import build
from medray.models.precision import cast
from medray.types import Head, Sampling

if TYPE_CHECKING:
    from gpu import Results

PATIENCE_S = 150.0  # for processes that start together, and for their steps


def measure(results: "Results", args: argparse.Namespace) -> None:
    shapes = args.shapes or (["135m", "7b"] if has_gpu() else ["tiny"])
    for shape in shapes:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            write_rows(folder, 400, 35 if shape != "tiny" else 20)
            base = folder / f"base-{shape}"
            results.run(f"{shape} base model", partial(write_base, shape, folder))
            if shape != "7b":
                for mode in ("alone", "mps") if has_gpu() and can_start_mps() else ("alone",):
                    with mps(folder, mode == "mps"):
                        share(results, shape, folder, args, mode)
            for precision in ("fp32", "bf16"):
                for what, work in (("head", read_texts), ("texts", write_texts)):
                    name = f"{shape} {what} {precision}"
                    if args.only in name:
                        results.run(name, partial(work, base, precision))


def share(
    results: "Results", shape: str, folder: Path, args: argparse.Namespace, mode: str
) -> None:
    single = 0.0
    for number in (1, 2, 4, 8) if has_gpu() else (1, 2):
        name = f"{shape} {number} trials" + (" with MPS" if mode == "mps" else "")
        if args.only not in name:
            continue
        row = results.run(name, partial(run_trials, shape, folder, number, args))
        single = single or row.get("tokens_per_s", 0.0)
        if single and "tokens_per_s" in row:
            print(f"{name}: {row['tokens_per_s'] / single:.2f} times one trial", flush=True)


def run_trials(shape: str, folder: Path, number: int, args: argparse.Namespace) -> dict[str, Any]:
    """Run trials at the same time, and return their common speed."""
    meeting = Path(tempfile.mkdtemp(dir=folder))
    script = str(Path(__file__).with_name("gpu.py"))
    command = [sys.executable, script, "sharing", *["--device-in-name"] * args.device_in_name]
    command += ["--trial", shape, str(folder), str(meeting), str(number), str(args.steps)]
    processes = [subprocess.Popen([*command, str(rank)]) for rank in range(number)]
    try:
        wait_for(lambda: len(list(meeting.glob("ready-*"))) == number, processes)
        (meeting / "go").touch()
        for process in processes:
            process.wait(PATIENCE_S)
    finally:
        for process in processes:
            process.kill()
    rows = [json.loads(path.read_text()) for path in meeting.glob("row-*")]
    if len(rows) < number:
        raise RuntimeError(f"{number - len(rows)} of {number} trials failed")
    seconds = max(row["end"] for row in rows) - min(row["start"] for row in rows)
    return {
        "tokens_per_s": sum(row["tokens"] for row in rows) / seconds,
        "ms_per_step": 1000 * seconds / args.steps,
        "peak_gb": max(row["peak_gb"] for row in rows),
    }


def wait_for(condition: Callable[[], bool], processes: list[subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end or any(process.poll() for process in processes):
            raise RuntimeError("a trial did not start")
        time.sleep(0.05)


def run_trial(shape: str, folder: str, meeting: str, number: str, steps: str, rank: str) -> None:
    """Run one of several trials, in this process."""
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(1 / int(number))
    place = Path(folder) / f"trial-{number}-{rank}"
    place.mkdir(exist_ok=True)
    shutil.copy(Path(folder) / "rows.jsonl", place)
    loop = start_loop(open_trial(Path(folder) / f"base-{shape}", place))
    take_steps(loop, 3)
    (Path(meeting) / f"ready-{rank}").touch()
    while not (Path(meeting) / "go").exists():
        time.sleep(0.002)
    start = time.time()
    _, tokens = take_steps(loop, int(steps))
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
    row = {"start": start, "end": time.time(), "tokens": tokens, "peak_gb": peak}
    draft = Path(meeting) / f"draft-{rank}"
    draft.write_text(json.dumps(row))
    draft.rename(Path(meeting) / f"row-{rank}")


def can_start_mps() -> bool:
    return shutil.which("nvidia-cuda-mps-control") is not None


@contextmanager
def mps(folder: Path, is_on: bool) -> Iterator[None]:
    """Run NVIDIA's Multi-Process Service in the block, for the processes that start in it."""
    if not is_on:
        yield
        return
    names = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
    os.environ.update(dict.fromkeys(names, str(folder)))
    control = "nvidia-cuda-mps-control"
    subprocess.run([control, "-d"], check=False, timeout=20)
    try:
        yield
    finally:
        subprocess.run([control], input=b"quit\n", check=False, timeout=20)
        for name in names:
            del os.environ[name]


def open_engine(base: Path, head: Head | None, precision: Precision) -> TransformersEngine:
    model = build(sources.resolve(str(base)), head, ModelOptions(), None)
    model.network.to(device()).eval()
    cast(model.network, model.family, precision)
    return TransformersEngine(
        model, precision=precision, token_budget=65536 if head else 1 << 20, device=device()
    )


def read_texts(base: Path, precision: Precision) -> dict[str, Any]:
    """Return the speed of a head for 1, 32 and 512 texts at a time."""
    engine = open_engine(base, Head(("a", "b")), precision)
    rng, result = np.random.default_rng(0), {}
    for number in (1, 32, 512) if has_gpu() else (1, 4):
        lengths = rng.normal(264, 80, number).clip(8, 512)
        rows = [rng.integers(5, 60, int(length)).tolist() for length in lengths]
        engine.logits(rows[:4])
        start = now()
        engine.logits(rows)
        result[f"texts_per_s_{number}"] = number / (now() - start)
    return result


def write_texts(base: Path, precision: Precision) -> dict[str, Any]:
    """Return the speed of 1 to 128 texts that are generated together."""
    engine, result = open_engine(base, None, precision), {}
    num_steps = 16
    for number in (1, 8, 32, 128) if has_gpu() else (1, 4):
        generation = engine.generation()
        generation.ends = set()  # keep all rows until the end
        sampling = Sampling(max_tokens=num_steps + 4)
        prompt = list(range(5, 55)) * 2
        generation.join([generation.row(at, prompt, sampling) for at in range(number)])
        generation.step()
        start = now()
        for _ in range(num_steps):
            generation.step()
        result[f"tokens_per_s_{number}"] = num_steps * number / (now() - start)
    return result
