"""A study in this process: searched, interrupted, resumed, stopped early, and tested once."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import run_files, tiny
from support.in_process import run
from support.watcher import RecordingWatcher, figures

from medray.config.study import StudyConfig
from medray.data import dataset
from medray.errors import ConfigError, TrialError
from medray.records import Evaluation, TrialRecord
from medray.registry.registry import Registry
from medray.study.run import Run
from medray.study.study import Outcome
from medray.tasks.base import protocol as tasks
from medray.training import stop
from medray.training.material import gather, open_material

RATE = "search.space={train.learning_rate: {choice: [0.01, 0.02, 0.03, 0.04]}}"


def alone(study: StudyConfig, folder: Path) -> list[Evaluation]:
    """Run the study's first trial without Ray, and return its history."""
    folder.mkdir()
    return tiny.trial(study, folder).run().history


@dataclass(frozen=True)
class Comparison:
    study: StudyConfig
    outcome: Outcome
    watcher: RecordingWatcher


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Run one study over an encoder with two settings and a decoder, shared by the tests of its
    results."""
    folder = tmp_path_factory.mktemp("comparison")
    bert, llama = tiny.base(folder, "bert"), tiny.base(folder, "llama")
    bases = (
        f"base_models=[{{source: {bert}}}, {{source: {bert}, num_trials: 1, overrides: {{lora.r: "
        "4}},"
        f" {{source: {llama}, num_trials: 1, overrides: {{data.limit: 20}}}}]"
    )
    more = (
        "search.algorithm=optuna",
        "search.num_trials=2",
        "publish={name: cancer, allow_worse: true}",
        "calibration.abstain_precision=0.6",
    )
    study = tiny.study(folder, bases, RATE, *more)
    watcher = RecordingWatcher()
    return Comparison(study, run(study, watcher), watcher)


def test_every_base_model_is_searched_the_winner_published_and_every_file_written(
    comparison: Comparison,
) -> None:
    study, outcome, watcher = comparison.study, comparison.outcome, comparison.watcher
    board = outcome.board
    assert watcher.num_trials == 4
    assert [record.status for record in outcome.run.records()] == ["finished"] * 4
    finalists = {entry.name for entry in board.entries if entry.test}
    assert len(finalists) == 6  # one finalist of each base model, and three references
    assert {
        "tiny-llama-000",
        "majority",
        "TF-IDF + logistic regression",
        "frozen tiny-bert + logistic regression",
    } < finalists
    assert all(
        entry.seconds_to_first_step is not None and entry.seconds_to_first_step > 0
        for entry in board.entries
        if entry.kind == "trial"
    )
    release = Registry(study.storage_path).resolve("cancer@best")
    assert outcome.release is not None
    assert release.reference == outcome.release.reference == "cancer@1"
    assert release.record.test is not None
    assert release.record.test.metrics == dict(board.best.test)
    analysis = outcome.analysis
    assert analysis is not None
    assert analysis.best.name == board.winner
    assert {model.name for model in analysis.models} == {
        entry.name for entry in board.entries if entry.test and entry.kind == "trial"
    }
    assert analysis.best.test.figure.value == pytest.approx(board.best.test["f1_macro"])
    assert analysis.best.calibration == release.record.calibration == release.load().calibration
    assert release.record.calibration.abstention is not None
    assert release.record.calibration.num_rows == board.num_rows["validation"]
    assert release.record.test.ece == (analysis.best.test.before.ece, analysis.best.test.after.ece)
    assert "abstention for precision 0.6" in (outcome.run.folder / "leaderboard.md").read_text()
    storage = Path(study.storage_path)
    (log_file,) = (storage / "test_log").iterdir()
    assert len(log_file.read_text().splitlines()) == 1
    assert {
        "leaderboard.json",
        "analysis.json",
        "leaderboard.csv",
        "leaderboard.md",
        "history.csv",
        "study.yaml",
    } <= {path.name for path in outcome.run.folder.iterdir()}
    assert len((outcome.run.folder / "history.csv").read_text().splitlines()) == 1 + 4 * 2
    assert not list(
        outcome.run.folder.rglob("events.out.tfevents*")
    )  # Tune's: ours are the watcher's that `medray study` brings
    assert (
        len(list((storage / "prepared").glob("*.arrow"))) == 2
    )  # tokenised once for each tokenizer and row limit
    logs = [
        (outcome.run.trial_dir(record.trial) / "log.txt").read_text()
        for record in outcome.run.records()
    ]
    assert all("parameters train, on 1 thread(s)" in log for log in logs)
    assert all("f1_macro" in evaluation.metrics for _, evaluation in watcher.evaluations)


def test_one_base_model_under_two_settings_is_two_rows_of_the_leaderboard(
    comparison: Comparison,
) -> None:
    board = comparison.outcome.board
    finalists = {entry.name for entry in board.entries if entry.test and entry.kind == "trial"}
    assert {name for name in finalists if "bert" in name} == {
        next(n for n in finalists if n.startswith("tiny-bert-0")),
        "tiny-bert-2-000",
    }
    registry = Registry(comparison.study.storage_path)
    loser = next(
        entry.checkpoint
        for entry in board.entries
        if entry.checkpoint and entry.checkpoint != board.best.checkpoint
    )
    assert registry.publish(str(loser), "cancer").reference == "cancer@2"
    registry.point("cancer", "best", 2)
    try:
        assert run(comparison.study, here=Run.resume(comparison.study)).release is not None
        assert registry.resolve("cancer@best").record.version == 2
    finally:
        registry.point("cancer", "best", 1)


def test_what_a_trial_opens_holds_validation_rows_and_no_label_of_a_test_row(
    tmp_path: Path,
) -> None:
    study = tiny.study(tmp_path)
    config, data = study.trial(study.base_models[0]), dataset.load(study.data)
    material = open_material(
        gather(config, data, tasks.fit(config.task, data.label_sets()), tmp_path / "prepared").path
    )
    assert [example.id for example in material.validation] == [
        example.id for example in data.validation
    ]
    test_ids = {example.id for example in data.unlabelled_test()}
    assert not test_ids & {example.id for example in material.validation}
    rows = material.prepared.table.to_pylist()
    assert {tuple(row["target"]) for row in rows if row["row_id"] in test_ids} == {()}
    assert test_ids & {row["row_id"] for row in rows}


def test_a_trial_that_is_stopped_early_keeps_its_best_epoch(tmp_path: Path) -> None:
    space = (
        "search.space={train.learning_rate: {grid: [0.005, 1.0e-9]}}"  # the second learns nothing
    )
    settings = [
        "task.metric=log_loss",
        "search.scheduler=asha",
        "search.grace_epochs=1",
        "train.epochs=3",
    ]
    outcome = run(tiny.study(tmp_path, space, *settings))
    assert [record.status for record in outcome.run.records()] == ["finished", "stopped"]
    (entry,) = (entry for entry in outcome.board.entries if entry.status == "stopped")
    assert (entry.epoch, entry.num_epochs) == (1, 1)
    assert entry.checkpoint is not None
    assert (Path(entry.checkpoint) / "manifest.json").exists()


@pytest.fixture(scope="module")
def failing_study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """Run a study whose second base model never trains, and one setting of the first neither.
    Return its run and its error."""
    folder = tmp_path_factory.mktemp("failing_study")
    bert, llama = tiny.base(folder, "bert"), tiny.base(folder, "llama")
    space = "{train.samples_per_step: {grid: [8, 4]}, train.learning_rate: {grid: [0.01, 1.0e+30]}}"
    study = tiny.study(
        folder,
        f"base_models=[{{source: {bert}, space: {space}}}, {{source: {llama}, overrides: "
        "{train.learning_rate: 1.0e+30}}]",
        "search.max_failed=3",
    )
    here = Run.start(study)
    with pytest.raises(TrialError) as error:
        run(study, here=here)
    return here, str(error.value)


def test_a_trial_that_cannot_go_on_is_told_and_the_others_are_ranked(
    failing_study: tuple[Run, str],
) -> None:
    board = failing_study[0].leaderboard()
    failures = [
        entry for entry in board.entries if entry.status == "failed" and "bert" in entry.name
    ]
    assert len(failures) == 2
    assert all("lower train.learning_rate" in str(entry.error) for entry in failures)
    assert board.best.settings["train.learning_rate"] == 0.01


def test_a_base_model_whose_trials_all_failed_fails_the_study_after_the_others_are_ranked(
    failing_study: tuple[Run, str],
) -> None:
    here, error = failing_study
    assert re.search(r"every trial of .*tiny-llama failed \(the loss is", error)
    assert (here.folder / "leaderboard.json").exists()


def test_an_interrupted_study_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    study = tiny.study(
        tmp_path, RATE, "search.num_trials=2", "train.epochs=3", "resources.cpus_per_worker=1"
    )

    def interrupt(record: TrialRecord, evaluation: Evaluation) -> None:
        if evaluation.epoch == 2:
            raise KeyboardInterrupt

    here = Run.start(study)
    with pytest.raises(KeyboardInterrupt):
        run(study, RecordingWatcher(interrupt), here)
    assert "running" in {record.status for record in here.records()}
    outcome = run(study, here=Run.resume(study))
    assert outcome.run.folder == here.folder
    for record in here.records():
        same = f"train.learning_rate={record.settings['train.learning_rate']}"
        reference = alone(tiny.study(tmp_path, same, "train.epochs=3"), tmp_path / record.trial)
        assert figures(here.history(record.trial)) == figures(reference)
    assert [record.status for record in here.records()] == ["finished", "finished"]


def test_a_trial_that_stores_its_state_when_it_is_interrupted_takes_no_step_twice(
    tmp_path: Path,
) -> None:
    study = tiny.study(tmp_path, "train.epochs=3", "train.log_every_steps=1")
    here = Run.start(study)

    def interrupt(record: TrialRecord, evaluation: Evaluation) -> None:
        if evaluation.epoch == 1:
            stop.request(here.trial_dir(record.trial))

    with pytest.raises(KeyboardInterrupt):
        run(study, RecordingWatcher(interrupt), here)
    run(study, here=Run.resume(study))
    (record,) = here.records()
    assert figures(here.history(record.trial)) == figures(alone(study, tmp_path / "alone"))
    steps = re.findall(r" step (\d+)/", (here.trial_dir(record.trial) / "log.txt").read_text())
    assert len(steps) == len(set(steps)) > 0


def test_a_study_that_the_cluster_can_never_hold_is_refused_before_anything_is_read(
    tmp_path: Path,
) -> None:
    study = tiny.study(
        tmp_path,
        "resources={num_workers: 9, cpus_per_worker: 2}",
        "train.samples_per_step=9",
        "data.format.path=missing.jsonl",
    )
    with pytest.raises(
        ConfigError, match=r"9 worker\(s\) of 2 CPU\(s\), which this cluster does not have"
    ):
        run(study)


def test_a_base_model_that_the_budget_left_untried_fails_the_study(tmp_path: Path) -> None:
    """Its run has ended: nothing is trained."""
    bases = [{"source": source} for source in (*run_files.BASES, "hub/untried")]
    finished_run = run_files.run(tmp_path, base_models=bases, publish=None)
    study = run_files.study(tmp_path, base_models=bases, publish=None)
    with pytest.raises(TrialError, match=r"the budget ended before hub/untried had a trial"):
        run(study, here=finished_run)
