"""Studies on a real Ray, one for each promise that a study in one process cannot show: workers,
processes that die, memory, waiting."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError
from support import tiny
from support.ray_studies import run
from support.serve_session import processes
from support.watcher import RecordingWatcher, figures

from medray.config.study import StudyConfig
from medray.data import dataset
from medray.errors import TrialError
from medray.records import Evaluation, TrialRecord
from medray.runtime.cluster import Cluster
from medray.study import ray_tune
from medray.study.placement import Placement
from medray.study.run import Run


def alone(study: StudyConfig, folder: Path) -> list[Evaluation]:
    """Run the study's first trial without Ray, and return its history."""
    folder.mkdir()
    return tiny.trial(study, folder).run().history


@pytest.mark.ray
def test_a_killed_trial_goes_on_from_its_state_and_no_epoch_is_counted_twice(
    tmp_path: Path, cluster: Cluster
) -> None:
    """Tune's own count of reports restarts after a kill. With that count, the search would use one
    more epoch of the budget."""
    study = tiny.study(
        tmp_path, "train.epochs=5", "search.num_epochs=3", "resources.cpus_per_worker=1"
    )
    pids: list[int] = []

    def kill(record: TrialRecord, evaluation: Evaluation) -> None:
        if not pids and evaluation.epoch == 2:
            pids.append(
                max(
                    number
                    for number, name in processes().items()
                    if name.startswith("ray::TrialActor")
                )
            )
            os.kill(pids[0], signal.SIGKILL)

    outcome = run(study, cluster, RecordingWatcher(kill))
    (record,) = outcome.run.records()
    assert pids
    assert record.status == "stopped"
    assert (
        figures(outcome.run.history(record.trial)) == figures(alone(study, tmp_path / "alone"))[:3]
    )


@pytest.mark.ray
def test_workers_of_ray_train_compute_what_one_does_and_a_full_cluster_never_waits_for_itself(
    tmp_path: Path, cluster: Cluster
) -> None:
    """A trial takes all CPUs. A driver with a CPU would wait forever, and so would a trial after a
    placement group left by an early stop.

    A second Ray runs on the host.
    """
    settings = ["lora.dropout=0", "train.epochs=2", "task.metric=log_loss"]
    space = (
        "search.space={train.learning_rate: {grid: [0.005, 1.0e-9]}}"  # the second learns nothing
    )
    resources = f"resources={{num_workers: 2, cpus_per_worker: {int(cluster.cpus) // 2}}}"
    study = tiny.study(
        tmp_path,
        *settings,
        space,
        resources,
        "search.scheduler=asha",
        "search.grace_epochs=1",
    )
    alive = (
        "import ray, sys; ray.init(address='local', num_cpus=1, log_to_driver=False); print('up', "
        "flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", alive],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert other.stdout is not None
        assert "up" in other.stdout.readline()
        outcome = run(study, cluster)
    finally:
        other.communicate("", timeout=30)
    assert [record.status for record in outcome.run.records()] == ["finished", "stopped"]
    assert _until_all_is_free(cluster) == cluster.cpus
    single = alone(
        tiny.study(tmp_path, *settings, "train.learning_rate=0.005", "resources.cpus_per_worker=1"),
        tmp_path / "alone",
    )
    for evaluation, own in zip(outcome.run.history("tiny-bert-000"), single, strict=True):
        assert evaluation.train_loss == pytest.approx(own.train_loss, abs=1e-5)
        assert evaluation.metrics == pytest.approx(own.metrics, abs=1e-4)
    content = json.loads(
        (Path(str(outcome.board.best.checkpoint)) / "predictions.jsonl").read_text().splitlines()[0]
    )
    assert content["row_id"] == dataset.load(study.data).validation[0].id


def _until_all_is_free(cluster: Cluster) -> float:
    """Wait up to 30 seconds for all CPUs to be free, and return the number of free ones."""
    import ray

    end = time.monotonic() + 30
    while (
        free := ray.available_resources().get("CPU", 0.0)
    ) < cluster.cpus and time.monotonic() < end:
        time.sleep(0.1)
    return free


@pytest.mark.ray
@pytest.mark.parametrize("times", [1, 2])
def test_a_trial_whose_process_ray_ends_for_want_of_memory_goes_on_as_often_as_allowed(
    times: int, tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny.study(
        tmp_path, "train.epochs=3", "resources={max_failures: 1, cpus_per_worker: 1}"
    )
    (tmp_path / "alone").mkdir()
    reference = tiny.trial(study, tmp_path / "alone").run().history if times == 1 else None
    left = times

    def end_step(self: object, iteration: int, trials: list[Any], **info: Any) -> None:
        nonlocal left
        # First after an evaluation, then before another.
        if left and any(
            trial.status == "RUNNING" and (left < times or trial.last_result.get("epoch"))
            for trial in trials
        ):
            left -= 1
            raise RuntimeError("Caught unexpected exception") from OutOfMemoryError(
                "1 worker(s) were killed"
            )  # as Tune does

    monkeypatch.setattr(ray_tune._Callback, "on_step_end", end_step)
    here = Run.start(study)
    if reference is not None:
        run(study, cluster, here=here)
        assert figures(here.history("tiny-bert-000")) == figures(reference)
    else:
        with pytest.raises(TrialError, match="its machine ran out of memory"):
            run(study, cluster, here=here)
        assert [record.status for record in here.records()] == ["failed"]


def test_a_study_that_waits_for_others_says_what_for(monkeypatch: pytest.MonkeyPatch) -> None:
    first_report, messages = threading.Event(), []
    monkeypatch.setattr(ray_tune, "WARNING_INTERVAL_S", 0.01)
    monkeypatch.setattr(
        ray_tune.log,
        "warning",
        lambda *parts: (first_report.set(), messages.append(parts[0] % parts[1:])),
    )
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 1.0})
    ray_tune.warn_of_waiting(first_report, Placement("train", 2, 1, 0, 4))
    assert messages == [
        (
            "no trial has reported yet: a trial takes 2 CPU(s) and 0 GPU(s), and 1 and 0 were free "
            "at the start; wait for other jobs, or stop them"
        )
    ]
    # The cluster has room: the call returns at once without a warning.
    ray_tune.warn_of_waiting(threading.Event(), Placement("inline", 1, 1, 0, 4))
    assert len(messages) == 1
