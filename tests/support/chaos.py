"""A study as a process of its own, to be disturbed while it runs, and what tells whether it ended
as if nothing had been."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import serve_session, tiny

from medray.config.load import dump_settings
from medray.study.run import Run, latest

GRID = "search.space={train.learning_rate: {grid: [0.002, 0.004]}}"
NUM_EPOCHS = 4
TWO_WORKERS = ("resources.launcher=train", "resources.num_workers=2")
Figures = dict[str, list[tuple[int, float, float]]]  # of a trial: epoch, loss, F1


@dataclass(frozen=True)
class Ended:
    status: int
    output: str


def hear_interrupts() -> None:
    """A shell that starts tests in the background has them ignore Ctrl-C, and their children
    too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def write_study(folder: Path, *settings: str) -> Path:
    """Grid, fp32, one thread, no early stop: what decides figures is the study alone."""
    asked = tiny.study(
        folder,
        GRID,
        "search.algorithm=grid",
        f"train.epochs={NUM_EPOCHS}",
        "train.log_every_steps=1",
        *settings,
        num_rows=800,
    )
    path = folder / "study.yaml"
    path.write_text(dump_settings(asked))
    return path


class Study:
    """`medray study` as a process of its own; on a cluster where `joined` tells its variables."""

    def __init__(
        self,
        *arguments: str | Path,
        command: str = "study",
        joined: Mapping[str, str] | None = None,
    ) -> None:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("RAY_")
        } | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "medray.cli", command, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment | dict(joined or {}),
            start_new_session=True,
            preexec_fn=hear_interrupts,
        )
        self.lines: list[str] = []
        self.seen: dict[int, str] = {}  # processes below, by the name they showed

    def until(self, pattern: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if re.search(pattern, line):
                self.seen |= serve_session.processes(self.process.pid)
                return
        pytest.fail(f"{pattern} was not said:\n{''.join(self.lines)}")

    def kill(self, name: str) -> None:
        """The first process below that shows this name."""
        found = [
            number
            for number, shown in serve_session.processes(self.process.pid).items()
            if re.match(name, shown)
        ]
        assert found, serve_session.processes(self.process.pid)
        os.kill(found[0], signal.SIGKILL)

    def end(self, timeout_s: float = 600) -> Ended:
        try:
            output, _ = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.abandon()
            raise
        return Ended(self.process.returncode, "".join(self.lines) + output)

    def abandon(self) -> None:
        """At the end of a test that failed: nothing is left running."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def left(self, patience_s: float = 20) -> dict[int, str]:
        """What still lives of the processes that were seen, after a while."""
        deadline = time.monotonic() + patience_s
        while (
            alive := {number: name for number, name in self.seen.items() if _lives(number)}
        ) and time.monotonic() < deadline:
            time.sleep(0.2)
        return alive


def _lives(number: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def figures(run: Run) -> Figures:
    return {
        record.trial: [
            (row.epoch, row.train_loss, row.metrics["f1_macro"])
            for row in run.history(record.trial)
        ]
        for record in run.records()
    }


def steps_trained_twice(run: Run) -> dict[str, int]:
    """Of each trial, by the steps that its own log tells."""
    again = {}
    for record in run.records():
        taken = [step for step, _ in _steps(run, record.trial)]
        again[record.trial] = len(taken) - len(set(taken))
    return again


def epochs_trained_twice(run: Run) -> float:
    """In parts of an epoch."""
    again = steps_trained_twice(run)
    num_steps = int(_steps(run, next(iter(again)))[0][1])
    return sum(again.values()) / (num_steps / NUM_EPOCHS)


def _steps(run: Run, trial: str) -> list[tuple[str, str]]:
    """Each step that a trial took, and of how many."""
    return re.findall(r"step (\d+)/(\d+)", (run.trial_dir(trial) / "log.txt").read_text())


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """What `write_study` alone finds, on one node and with nothing killed."""
    return found_alone(tmp_path_factory)


@pytest.fixture(scope="session")
def undisturbed_of_two(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """The same of trials of two workers: each worker draws its own dropout."""
    return found_alone(tmp_path_factory, *TWO_WORKERS)


def found_alone(tmp_path_factory: pytest.TempPathFactory, *settings: str) -> Figures:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = Study(write_study(folder, *settings)).end()
    assert done.status == 0, done.output
    return figures(latest(folder / "runs" / "tiny"))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with little more room than a study asks for at its start."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(
            "a file system that can be filled needs the right to mount one: "
            f"{mounted.stderr.strip()}"
        )
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """To the last byte."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 65536)
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while file.write(b"0"):
            pass
    return filler
