"""Runs a study as a separate process, disturbs it, and compares its figures with those of an
undisturbed run."""

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
class Result:
    status: int
    output: str


def hear_interrupts() -> None:
    """Restore Ctrl-C: a shell that starts tests in the background makes them, and their children,
    ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def write_study(folder: Path, *settings: str) -> Path:
    """Write a study with a grid, fp32, one thread and no early stop: its figures are
    reproducible."""
    study_config = tiny.study(
        folder,
        GRID,
        "search.algorithm=grid",
        f"train.epochs={NUM_EPOCHS}",
        "train.log_every_steps=1",
        *settings,
        num_rows=800,
    )
    path = folder / "study.yaml"
    path.write_text(dump_settings(study_config))
    return path


class Study:
    """A process that runs `medray study`, on the cluster that `cluster_env` names."""

    def __init__(
        self,
        *arguments: str | Path,
        command: str = "study",
        cluster_env: Mapping[str, str] | None = None,
    ) -> None:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("RAY_")
        } | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "medray.cli", command, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment | dict(cluster_env or {}),
            start_new_session=True,
            preexec_fn=hear_interrupts,
        )
        self.lines: list[str] = []
        self.children: dict[int, str] = {}  # process id: the name it showed

    def until(self, pattern: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if re.search(pattern, line):
                self.children |= serve_session.processes(self.process.pid)
                return
        pytest.fail(f"{pattern} was not printed:\n{''.join(self.lines)}")

    def kill(self, name: str) -> None:
        """Kill the first child process whose name matches."""
        children = [
            number
            for number, child_name in serve_session.processes(self.process.pid).items()
            if re.match(name, child_name)
        ]
        assert children, serve_session.processes(self.process.pid)
        os.kill(children[0], signal.SIGKILL)

    def end(self, timeout_s: float = 600) -> Result:
        try:
            output, _ = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.abandon()
            raise
        return Result(self.process.returncode, "".join(self.lines) + output)

    def abandon(self) -> None:
        """Kill the process and its children, so that a failed test leaves nothing behind."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def survivors(self, patience_s: float = 20) -> dict[int, str]:
        """Return the children that are still alive after a while."""
        deadline = time.monotonic() + patience_s
        while (
            alive := {number: name for number, name in self.children.items() if _lives(number)}
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
    """Count the steps per trial that its log names more than once."""
    again = {}
    for record in run.records():
        steps = [step for step, _ in _steps(run, record.trial)]
        again[record.trial] = len(steps) - len(set(steps))
    return again


def epochs_trained_twice(run: Run) -> float:
    """Return the repeated steps of all trials as a number of epochs."""
    again = steps_trained_twice(run)
    num_steps = int(_steps(run, next(iter(again)))[0][1])
    return sum(again.values()) / (num_steps / NUM_EPOCHS)


def _steps(run: Run, trial: str) -> list[tuple[str, str]]:
    """Return each step in the log of a trial, with the number of all steps."""
    return re.findall(r"step (\d+)/(\d+)", (run.trial_dir(trial) / "log.txt").read_text())


@pytest.fixture(scope="session")
def undisturbed_figures(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """Return the figures of the study of `write_study` on one node, with nothing killed."""
    return run_alone(tmp_path_factory)


@pytest.fixture(scope="session")
def undisturbed_figures_of_two(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """Return the same with two workers per trial: each worker draws its own dropout."""
    return run_alone(tmp_path_factory, *TWO_WORKERS)


def run_alone(tmp_path_factory: pytest.TempPathFactory, *settings: str) -> Figures:
    folder = tmp_path_factory.mktemp("undisturbed")
    result = Study(write_study(folder, *settings)).end()
    assert result.status == 0, result.output
    return figures(latest(folder / "runs" / "tiny"))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Mount a small file system, with little more room than a study requires at its start."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if mount.returncode:
        pytest.skip(
            f"a file system that can be filled needs the right to mount one: {mount.stderr.strip()}"
        )
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write a file that fills the file system to the last byte."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 65536)
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while file.write(b"0"):
            pass
    return filler
