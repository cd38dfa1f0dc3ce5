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
from medray.study import ray_tune
from medray.study.trial_actor import TrialActor

pytestmark = pytest.mark.ray


def late(seconds: float, *, is_lost: bool) -> type[TrialActor]:
    """Return a process of trials whose first one takes so long to end after its last report.

    Where the next trial `is_lost`, Tune finds that it cannot reuse the process."""

    # It travels by value: the processes of trials cannot import this file.
    class LateTrialActor(TrialActor):
        def setup(self, config: dict[str, Any]) -> None:
            from medray.training import worker

            give_memory_back = worker.give_memory_back

            def wait() -> None:
                time.sleep(seconds)
                worker.give_memory_back = give_memory_back
                give_memory_back()

            worker.give_memory_back = wait
            super().setup(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return not is_lost and super().reset_config(new_config)

    return LateTrialActor


def statuses(board: Leaderboard) -> list[str]:
    return [entry.status for entry in board.entries if entry.kind == "trial"]


def test_a_trial_whose_end_takes_ten_seconds_longer_costs_no_other_trial(
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(ray_tune, "TrialActor", late(10, is_lost=False))
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
    """Tune gives up a process that it cannot reuse, and with it the trial that was to run there."""
    monkeypatch.setattr(ray_tune, "TrialActor", late(0, is_lost=True))
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
@pytest.mark.parametrize("launcher", ["inline", "train"])
def test_a_study_beside_a_busy_loop_on_every_core_loses_no_trial(
    cluster: Cluster, tmp_path: Path, launcher: str
) -> None:
    study = tiny.study(
        tmp_path,
        GRID,
        "search.algorithm=grid",
        f"resources.launcher={launcher}",
        ray_studies.whole(cluster),
    )
    with busy(len(os.sched_getaffinity(0))):
        board = ray_studies.run(study, cluster).board
    assert set(statuses(board)) <= {"finished", "stopped"}
