"""A study on a machine that is busy, or whose Ray Tune loses a trial: every trial ends with its
result."""

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ray_studies, tiny
from support.chaos import GRID

from medray.evaluation.leaderboard import Leaderboard
from medray.runtime.cluster import Cluster
from medray.study import trial_actor as trials

pytestmark = pytest.mark.ray


def delayed_model(seconds: float, timeout_s: str | None = None) -> Any:
    """A trial's function whose first trial takes so long to end after its last report."""

    def start(
        config: dict[str, Any],
    ) -> None:  # travels by value: the processes of trials cannot import this file
        import os

        from medray.study import trial_actor

        if timeout_s is not None:
            os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = timeout_s
        trial_actor.inline(config)
        if config["assignment"]["trial"].endswith("-000"):
            time.sleep(seconds)

    return start


def statuses(board: Leaderboard) -> list[str]:
    return [entry.status for entry in board.entries if entry.kind == "trial"]


def test_a_trial_whose_end_takes_ten_seconds_longer_costs_no_other_trial(
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(trials, "start", delayed_model(10))
    study = tiny.study(tmp_path, GRID, "search.algorithm=grid", ray_studies.whole(cluster))
    with caplog.at_level(logging.WARNING, "medray"):
        board = ray_studies.run(study, cluster).board
    assert len(statuses(board)) > 1
    assert set(statuses(board)) <= {"finished", "stopped"}
    assert "continues from its last stored state" not in caplog.text


def test_a_trial_that_tune_loses_is_run_again_by_the_study(
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Tune gives up a process whose thread has not ended in time, and with it the trial that was to
    run there."""
    monkeypatch.setattr(trials, "start", delayed_model(3, timeout_s="0"))
    study = tiny.study(
        tmp_path,
        GRID,
        "search.algorithm=grid",
        "resources.max_failures=0",
        ray_studies.whole(cluster),
    )
    with caplog.at_level(logging.WARNING, "medray"):
        board = ray_studies.run(study, cluster).board
    assert set(statuses(board)) <= {"finished", "stopped"}
    assert (
        "Ray Tune stopped it without a result or an error; it continues from its last stored state"
        in caplog.text
    )


@contextlib.contextmanager
def busy(num: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@pytest.mark.slow
def test_a_study_beside_a_busy_loop_on_every_core_loses_no_trial(
    cluster: Cluster, tmp_path: Path
) -> None:
    study = tiny.study(tmp_path, GRID, "search.algorithm=grid", ray_studies.whole(cluster))
    with busy(len(os.sched_getaffinity(0))):
        board = ray_studies.run(study, cluster).board
    assert set(statuses(board)) <= {"finished", "stopped"}
