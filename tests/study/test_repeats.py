"""Finalists trained again: with other seeds, and on the other folds, so that every row is answered
by a model that had not seen it."""

import json
from pathlib import Path

import pytest
from support import tiny
from support.in_process import run
from support.watcher import RecordingWatcher, figures

from medray.data import dataset
from medray.errors import ConfigError
from medray.evaluation.leaderboard import Entry
from medray.records import TrialRecord
from medray.registry.registry import Registry
from medray.storage import checkpoint
from medray.study import repeats
from medray.study.repeats import Repeats
from medray.study.run import Run

GRID = "search.space={train.learning_rate: {grid: [0.01, 1.0e-9]}}"
RECORD = TrialRecord(trial="t-003", base_model="t", base=0, number=3, settings={"lora.r": 4})


def test_seeds_and_folds_are_named_after_their_finalist_and_change_nothing_else(
    tmp_path: Path,
) -> None:
    finalist, records = [Entry("t-003", "trial")], {"t-003": RECORD}
    with_seeds = tiny.study(tmp_path, "search.num_seeds=3", "seed=5")
    proposals = repeats.proposals(with_seeds, finalist, records)
    assert [(proposal.name, proposal.settings) for proposal in proposals] == [
        ("t-003-seed-1", {"lora.r": 4}),
        ("t-003-seed-2", {"lora.r": 4}),
    ]
    first, third = (
        repeats.config_of(with_seeds, RECORD.model_copy(update={"seed": seed})) for seed in (0, 2)
    )
    assert (first.seed, third.seed) == (5, 7)
    assert third.model_copy(update={"seed": 5}) == first
    with_folds = tiny.study(tmp_path, "data.split={kind: kfold, folds: 3}")
    assert [proposal.name for proposal in repeats.proposals(with_folds, finalist, records)] == [
        "t-003-fold-1",
        "t-003-fold-2",
    ]
    assert [
        repeats.config_of(with_folds, RECORD.model_copy(update={"fold": fold})).data.split.fold
        for fold in (0, 2)
    ] == [0, 2]
    assert (
        repeats.proposals(
            tiny.study(tmp_path, "data.split={kind: kfold, fold: 1}"), finalist, records
        )
        == []
    )


def test_what_an_earlier_process_repeated_is_not_repeated_and_a_stopped_finalist_sets_the_limit(
    tmp_path: Path,
) -> None:
    proposals = repeats.proposals(
        tiny.study(tmp_path, "search.num_seeds=3"), [Entry("t-003", "trial")], {"t-003": RECORD}
    )
    plan = Repeats(proposals, {"t-003": 2.0}, "f1_macro")
    plan.recall(proposals[0])
    assert plan.next() == proposals[1]
    assert plan.next() is None
    plan.begin("t-003-seed-2", proposals[1])
    assert plan.observe("t-003-seed-2", 1.0, 0.1)
    assert not plan.observe("t-003-seed-2", 2.0, 0.9)
    assert plan.owns(RECORD.model_copy(update={"trial": "t-003-seed-1", "of": "t-003", "seed": 1}))
    assert not plan.owns(RECORD)


def test_folds_and_seeds_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="finalists are repeated over folds or over seeds"):
        tiny.study(tmp_path, "data.split.kind=kfold", "search.num_seeds=2")


def test_the_best_seed_is_published_with_the_mean_of_all_and_nothing_is_trained_twice(
    tmp_path: Path,
) -> None:
    study = tiny.study(
        tmp_path, GRID, "search.num_seeds=3", "publish={name: cancer, allow_worse: true}"
    )
    outcome = run(study)
    seeds = outcome.board.best.seeds
    assert seeds is not None
    assert seeds.trials == ("tiny-bert-000", "tiny-bert-000-seed-1", "tiny-bert-000-seed-2")
    assert len({json.dumps(figures(outcome.run.history(trial))) for trial in seeds.trials}) == 3
    assert outcome.board.best.test["f1_macro"] == pytest.approx(sum(seeds.test) / 3)
    assert (
        seeds.published
        == max(zip(seeds.validation, seeds.trials, strict=True), key=lambda pair: pair[0])[1]
    )
    assert seeds.published in str(outcome.board.best.checkpoint)
    assert {entry.name for entry in outcome.board.entries if entry.kind == "trial"} == {
        "tiny-bert-000",
        "tiny-bert-001",
    }
    assert outcome.release is not None
    assert outcome.release.record.test is not None
    assert (outcome.release.record.test.num_seeds, outcome.release.record.test.num_openings) == (
        3,
        1,
    )
    assert "mean of 3 seeds" in (outcome.run.folder / "leaderboard.md").read_text()
    more = tiny.study(
        tmp_path, GRID, "search.num_seeds=4", "publish={name: cancer, allow_worse: true}"
    )
    watcher = RecordingWatcher()
    longer = run(more, watcher, Run.resume(more))
    assert {trial for trial, _ in watcher.evaluations} == {"tiny-bert-000-seed-3"}
    assert longer.board.best.seeds is not None
    assert longer.board.best.seeds.test[:3] == seeds.test
    assert longer.board.num_openings == 2


def test_every_row_is_answered_once_by_a_model_that_had_not_seen_it(tmp_path: Path) -> None:
    study = tiny.study(
        tmp_path,
        GRID,
        "data.split={kind: kfold, folds: 3}",
        "publish={name: cancer, allow_worse: true}",
    )
    outcome = run(study)
    assert outcome.board.num_rows["test"] == 60
    assert outcome.board.num_folds == 3
    answered: list[str] = []
    best = outcome.board.best.name
    for fold, trial in enumerate((best, f"{best}-fold-1", f"{best}-fold-2")):
        split = study.data.split.model_copy(update={"fold": fold})
        data = dataset.load(study.data.model_copy(update={"split": split}))
        manifest = checkpoint.read(
            max((outcome.run.trial_dir(trial) / "checkpoints").glob("step-*"))
        )
        assert manifest.split_fingerprint == data.split_fingerprint
        assert manifest.trial["data"]["split"]["fold"] == fold
        answered += [example.id for example in data.unlabelled_test()]
    assert sorted(answered) == sorted(f"r{number}" for number in range(60))
    references = [entry for entry in outcome.board.entries if entry.kind == "reference"]
    assert len(references) == 3
    assert all(pair.split in ("validation", "test") for pair in outcome.board.comparisons)
    release = Registry(study.storage_path).resolve("cancer@best")
    assert release.record.test is not None
    assert (release.record.test.num_rows, release.record.test.num_folds) == (60, 3)
    assert checkpoint.read(release.folder()).trial["data"]["split"]["fold"] == 0
    assert len(list((tmp_path / "runs" / "test_log").iterdir())) == 3
