"""Processes are killed in the middle of a study. Its metrics are those of an undisturbed study,
epoch by epoch."""

import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support import serve_session
from support.chaos import (
    TWO_WORKERS,
    Figures,
    Study,
    epochs_trained_twice,
    figures,
    steps_trained_twice,
    write_study,
)

from medray.study.run import latest

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(900)]
ENDS = {"the study's process": signal.SIGKILL, "SIGTERM": signal.SIGTERM}
STATUS = {"Ctrl-C": 130, "SIGTERM": 143}


@pytest.mark.parametrize(
    ("what", "settings", "target", "goes_on_alone"),
    [
        ("a trial's process", (), r"ray::.*train", True),
        ("a worker of Ray Train", ("resources.launcher=train",), r"ray::RayTrainWorker", True),
        (
            "the driver of a trial of Ray Train",
            ("resources.launcher=train",),
            r"ray::TrialActor",
            True,
        ),
        ("the desk of a crew", ("resources.launcher=train",), r"ray::Desk", True),
        ("the study's process", (), "", False),
        ("Ctrl-C", (), "", False),
        ("SIGTERM", (), "", False),
        ("a worker of Ray Train", TWO_WORKERS, r"ray::RayTrainWorker", True),
        ("Ctrl-C", TWO_WORKERS, "", False),
        ("SIGTERM", TWO_WORKERS, "", False),
        ("the whole Ray", (), r".*(raylet|gcs_server|ray::)", False),
    ],
)
def test_a_study_ends_as_if_nothing_had_been_killed(
    what: str,
    settings: tuple[str, ...],
    target: str,
    goes_on_alone: bool,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    undisturbed_figures: Figures = request.getfixturevalue(
        "undisturbed_figures_of_two" if settings == TWO_WORKERS else "undisturbed_figures"
    )
    path = write_study(tmp_path, *settings)
    study = Study(path)
    study.until(r"tiny-bert-\d+  epoch 2 ")
    start = time.monotonic()
    if what == "Ctrl-C":
        os.killpg(study.process.pid, signal.SIGINT)  # as a terminal does it
    elif what in ENDS:
        os.kill(study.process.pid, ENDS[what])
    elif what == "the whole Ray":
        for number, name in serve_session.processes(study.process.pid).items():
            if number != study.process.pid and re.match(target, name):
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
    else:
        study.kill(target)
    end = study.end()
    print(f"{what}: ended with {end.status} after {time.monotonic() - start:.1f} s")
    if not goes_on_alone:
        assert end.status == STATUS.get(what, end.status) != 0, end.output
        assert ("--resume" in end.output) == (what in ("Ctrl-C", "SIGTERM")), end.output
        # Ray's agents wait a minute for a head that was killed with the study, and compute nothing
        # meanwhile.
        assert not [name for name in study.survivors(5).values() if "Agent" not in name], (
            "processes were left behind"
        )
        assert not study.survivors(90), "processes were left behind"
        print(f"{what}: nothing was left after {time.monotonic() - start:.1f} s")
        end = Study(path, "--resume").end()
    assert end.status == 0, end.output
    run = latest(tmp_path / "runs" / "tiny")
    assert figures(run) == undisturbed_figures
    again = epochs_trained_twice(run)
    print(f"{what}: epochs trained twice {again:.2f}")
    assert again <= 2  # one evaluation interval for each trial that ran
    if what in STATUS:
        assert (
            max(steps_trained_twice(run).values()) <= 1
        )  # of a trial that was not waited for: it did not train when it was interrupted
