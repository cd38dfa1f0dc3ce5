"""The servers that benches compare: releases to serve, processes that answer on a port, and their
CPU time."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medray.config.study import StudyConfig
    from medray.data.dataset import Dataset
    from medray.registry.release import Release

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_TICK = os.sysconf("SC_CLK_TCK")
_WARM_UP = ("/v1/classify", {"text": "warm-up"})


@dataclass(frozen=True)
class Arm:
    """A server that a bench compares."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def publish(study: "StudyConfig", folder: Path) -> tuple["Release", "Dataset"]:
    """Train a study's first base model without a search, and publish it by the study's name. Return
    the release and the rows."""
    from medray.data import dataset as datasets
    from medray.registry.registry import Registry
    from medray.tasks.base import protocol as tasks
    from medray.training.material import gather
    from medray.training.trial import Trial

    config = study.trial(study.base_models[0])
    dataset = datasets.load(config.data)
    task = tasks.fit(config.task, dataset.label_sets(), dataset.train)
    place = folder / study.name
    trial = Trial(config, gather(config, dataset, task, place), place / "trial", lambda row: None)
    registry = Registry(str(folder / "runs"))
    return registry.publish(trial.run().checkpoint, study.name), dataset


@contextmanager
def server(arm: Arm, port: int, *, warm_up: tuple[str, Any] = _WARM_UP) -> Iterator[int]:
    """Start a server, yield its process id once it answers, and end it with its children."""
    path, body = warm_up
    process = subprocess.Popen(
        arm.command,
        env=os.environ | arm.environment,
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
                request = urllib.request.Request(
                    f"http://127.0.0.1:{port}{path}",
                    json.dumps(body).encode(),
                    {"content-type": "application/json"},
                )
                with urllib.request.urlopen(request, timeout=30):
                    break  # a health route may respond before the model is loaded
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    sys.exit(f"{' '.join(arm.command)} did not start:\n{''.join(lines[-20:])}")
                time.sleep(0.2)
        yield process.pid
    finally:
        process.send_signal(signal.SIGINT if "medray.cli" in arm.command else signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
        with suppress(ProcessLookupError):  # LitServe leaves processes behind
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def cpu_seconds(root: int) -> float:
    """Return the CPU time of a process and its descendants, including ended ones."""
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


def free_port() -> int:
    """Return a free port below those that the system, and so Ray, assigns by itself."""
    for port in range(18765, 28765):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise RuntimeError("no free port from 18765 to 28765")


def serve_command(folder: Path, port: int) -> list[str]:
    """Return the command that serves the release `bench` of a folder."""
    command = [sys.executable, "-m", "medray.cli", "serve", "bench", "--port", str(port)]
    return [*command, "--storage-path", str(folder / "runs")]
