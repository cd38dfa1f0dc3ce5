"""What is killed in the middle of a study, and that the study ends as if nothing had been: by figures, epoch for epoch."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import session
import tiny

from medray import config
from medray.tuning.runs import Run, latest

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(600)]
GRID = "search.space={train.learning_rate: {grid: [0.002, 0.004]}}"
NUM_EPOCHS = 4
ENDS = {"the study's process": signal.SIGKILL, "SIGTERM": signal.SIGTERM}
STATUS = {"Ctrl-C": 130, "SIGTERM": 143}


@dataclass(frozen=True)
class Ended:
    status: int
    output: str


def write_study(folder: Path, *settings: str) -> Path:
    """Grid, fp32, one thread, no early stop: what decides figures is the study alone."""
    asked = tiny.study(
        folder, GRID, "search.algorithm=grid", f"train.epochs={NUM_EPOCHS}", "train.log_every_steps=1", *settings, num_rows=800
    )
    path = folder / "study.yaml"
    path.write_text(config.dump(asked))
    return path


class Study:
    """`medray study` as a process of its own."""

    def __init__(self, *arguments: str | Path) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "medray.cli", "study", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.seen: dict[int, str] = {}  # processes below, by the name they showed

    def until(self, pattern: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if re.search(pattern, line):
                self.seen |= session.processes(self.process.pid)
                return
        pytest.fail(f"{pattern} was not said:\n{''.join(self.lines)}")

    def kill(self, name: str) -> None:
        """The first process below that shows this name."""
        found = [number for number, shown in session.processes(self.process.pid).items() if re.match(name, shown)]
        assert found, session.processes(self.process.pid)
        os.kill(found[0], signal.SIGKILL)

    def end(self) -> Ended:
        output, _ = self.process.communicate(timeout=300)
        return Ended(self.process.returncode, "".join(self.lines) + output)

    def left(self, patience_s: float = 20) -> dict[int, str]:
        """What still lives of the processes that were seen, after a while."""
        deadline = time.monotonic() + patience_s
        while (alive := {number: name for number, name in self.seen.items() if _lives(number)}) and time.monotonic() < deadline:
            time.sleep(0.2)
        return alive


def _lives(number: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def figures(run: Run) -> dict[str, list[tuple[int, float, float]]]:
    return {
        record.trial: [(row["epoch"], row["train_loss"], row["metrics"]["f1_macro"]) for row in run.history(record.trial)]
        for record in run.records()
    }


def epochs_trained_twice(run: Run) -> float:
    """In parts of an epoch, by the steps that the trials' own logs tell."""
    again = steps = 0
    for record in run.records():
        found = re.findall(r"step (\d+)/(\d+)", (run.trial_dir(record.trial) / "log.txt").read_text())
        again += sum(count - 1 for count in Counter(step for step, _ in found).values())
        steps = int(found[0][1])
    return again / (steps / NUM_EPOCHS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, float, float]]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = Study(write_study(folder)).end()
    assert done.status == 0, done.output
    return figures(latest(folder / "runs" / "tiny"))


@pytest.mark.parametrize(
    ("what", "settings", "target", "goes_on_alone"),
    [
        ("a trial's process", (), r"ray::.*train", True),
        ("a worker of Ray Train", ("resources.launcher=train",), r"ray::RayTrainWorker", True),
        ("the driver of a trial of Ray Train", ("resources.launcher=train",), r"ray::ImplicitFunc", True),
        ("the study's process", (), "", False),
        ("Ctrl-C", (), "", False),
        ("SIGTERM", (), "", False),
        ("the whole Ray", (), r".*(raylet|gcs_server|ray::)", False),
    ],
)
def test_a_study_ends_as_if_nothing_had_been_killed(
    what: str,
    settings: tuple[str, ...],
    target: str,
    goes_on_alone: bool,
    tmp_path: Path,
    undisturbed: dict[str, list[tuple[int, float, float]]],
) -> None:
    path = write_study(tmp_path, *settings)
    study = Study(path)
    study.until(r"tiny-bert-\d+  epoch 2 ")
    start = time.monotonic()
    if what == "Ctrl-C":
        os.killpg(study.process.pid, signal.SIGINT)  # as a terminal does it
    elif what in ENDS:
        os.kill(study.process.pid, ENDS[what])
    elif what == "the whole Ray":
        for number, name in session.processes(study.process.pid).items():
            if number != study.process.pid and re.match(target, name):
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
    else:
        study.kill(target)
    done = study.end()
    print(f"{what}: ended with {done.status} after {time.monotonic() - start:.1f} s")
    if not goes_on_alone:
        assert done.status == STATUS.get(what, done.status) != 0, done.output
        assert ("--resume" in done.output) == (what in ("Ctrl-C", "SIGTERM")), done.output
        # Ray's agents wait a minute for a head that was killed with the study, and compute nothing meanwhile.
        assert not [name for name in study.left(5).values() if "Agent" not in name], "processes were left behind"
        assert not study.left(90), "processes were left behind"
        print(f"{what}: nothing was left after {time.monotonic() - start:.1f} s")
        done = Study(path, "--resume").end()
    assert done.status == 0, done.output
    run = latest(tmp_path / "runs" / "tiny")
    assert figures(run) == undisturbed
    again = epochs_trained_twice(run)
    print(f"{what}: epochs trained twice {again:.2f}")
    assert again <= 2  # one evaluation interval for each trial that ran
