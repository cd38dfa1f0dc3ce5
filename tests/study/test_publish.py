"""A checkpoint with an evaluation becomes a release. Its analysis is stored with it, and the rule
of abstention may change."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from medray.config.load import load_study
from medray.config.study import CalibrationConfig
from medray.data import dataset
from medray.errors import ArtifactError
from medray.evaluation import analysis, leaderboard_files
from medray.evaluation.analysis import Analysis, ModelAnalysis
from medray.evaluation.bootstrap import Comparison
from medray.evaluation.leaderboard import Entry, Leaderboard, Pairing
from medray.evaluation.slices import Slicer
from medray.records import SETTINGS
from medray.registry.predictions import examine, fit_calibration, read_predictions
from medray.registry.registry import Registry
from medray.storage import checkpoint
from medray.study import publish
from medray.study.run import ANALYSIS, LEADERBOARD, Run
from medray.tasks.base.protocol import restore


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with one evaluated trial."""
    place = tmp_path_factory.mktemp("judged")
    study = tiny.study(place)
    own_run = Run.start(study)
    checkpoint_dir = tiny.trial(study, place).run().checkpoint
    folder = own_run.trial_dir("one") / "checkpoints" / checkpoint_dir.name
    shutil.copytree(checkpoint_dir, folder)
    data, manifest = dataset.load(study.data), checkpoint.read(folder)
    task, own = restore(manifest.task.options, manifest.task.state), read_predictions(folder)
    record = fit_calibration(task, own, data.validation, CalibrationConfig())
    split_analysis = examine(
        task, "validation", own, data.validation, record, Slicer.of(data.validation)
    )
    model = ModelAnalysis("one", record, split_analysis, replace(split_analysis, split="test"))
    (own_run.folder / ANALYSIS).write_bytes(
        analysis.to_json(Analysis("tiny", task.labels, False, "one", (model,)))
    )
    entry = Entry(
        "one", "trial", validation=manifest.metrics, test=manifest.metrics, checkpoint=str(folder)
    )
    board = Leaderboard(
        "tiny", "f1_macro", (entry,), "one", None, (), (), {"validation": 12, "test": 12}, 1
    )
    (own_run.folder / LEADERBOARD).write_text(leaderboard_files.to_json(board))
    return own_run


def test_a_winner_is_published_with_its_calibration_and_behaviour(run: Run, tmp_path: Path) -> None:
    analysis = run.analysis()
    assert analysis is not None
    record = publish.publish(Registry(str(tmp_path)), str(run.folder), "cancer").record
    assert record.calibration == analysis.best.calibration
    assert record.test is not None
    assert record.test.ece == (analysis.best.test.before.ece, analysis.best.test.after.ece)
    assert record.test.answered is None  # without a required precision


def test_another_rule_of_abstention_is_another_version_and_the_same_one_is_not(
    run: Run, tmp_path: Path
) -> None:
    registry = Registry(str(tmp_path))
    checkpoint_dir = str(run.leaderboard().best.checkpoint)
    versions = [
        publish.publish(registry, place, "cancer", abstain_precision=precision).record.version
        for place, precision in [
            (str(run.folder), None),
            (str(run.folder), 0.5),
            (checkpoint_dir, 0.5),
            (checkpoint_dir, None),
        ]
    ]
    assert versions == [1, 2, 2, 1]
    own, other = (registry.resolve(f"cancer@{version}").record for version in (1, 2))
    assert other.calibration.abstention is not None
    assert other.calibration.abstention.precision == 0.5
    assert other.calibration.temperature == own.calibration.temperature
    assert other.content_id == own.content_id


def test_an_abstention_is_not_fitted_where_there_are_no_rows_for_it(
    run: Run, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(str(run.leaderboard().best.checkpoint), alone)
    with pytest.raises(ArtifactError, match="no run here evaluated it"):
        publish.publish(Registry(str(tmp_path)), str(alone), "cancer", abstain_precision=0.9)
    assert (
        publish.publish(Registry(str(tmp_path)), str(alone), "cancer").record.calibration.num_rows
        == 0
    )
    settings = run.folder / "study.yaml"
    content = settings.read_text()
    try:
        settings.write_text(content.replace("    seed: 0", "    seed: 3"))  # of the split
        with pytest.raises(ArtifactError, match="the data or its split differs"):
            publish.publish(
                Registry(str(tmp_path)), str(run.folder), "cancer", abstain_precision=0.9
            )
    finally:
        settings.write_text(content)


def test_a_winner_that_is_published_again_keeps_its_version_and_what_was_lost_of_it_is_put_back(
    run: Run, tmp_path: Path
) -> None:
    registry, place = Registry(str(tmp_path)), str(run.folder)
    release = publish.publish(registry, place, "cancer")
    (release.folder() / "adapter_model.safetensors").unlink()
    assert publish.publish(registry, place, "cancer").record.version == 1
    release.verify()


def test_a_file_that_was_sorted_anew_changes_nothing_of_what_is_fitted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = publish.publish(
        Registry(str(tmp_path / "a")), str(run.folder), "cancer", abstain_precision=0.9
    ).record.calibration
    load = dataset.load

    def load_in_reverse(*arguments: Any) -> dataset.Dataset:
        data = load(*arguments)
        data.validation = list(reversed(data.validation))
        return data

    monkeypatch.setattr(dataset, "load", load_in_reverse)
    registry = Registry(str(tmp_path / "b"))
    assert (
        publish.publish(
            registry, str(run.folder), "cancer", abstain_precision=0.9
        ).record.calibration
        == own
    )


def test_a_study_that_is_looked_at_again_leaves_an_alias_that_was_moved_since(
    run: Run, tmp_path: Path
) -> None:
    study = load_study(
        [run.folder / SETTINGS], ["publish={name: cancer}", f"publish.storage_path={tmp_path}"]
    )
    registry, board = Registry(str(tmp_path)), run.leaderboard()

    def again() -> list[int]:
        publish.publish_winner(study, run, board)
        return [move.version for move in registry.history("cancer", "best")]

    assert again() == again() == [1]
    registry.publish(
        str(board.best.checkpoint),
        "cancer",
        notes="of the same checkpoint, as another rule of abstention makes it",
    )
    assert again() == [1]
    other = tmp_path / "other"
    shutil.copytree(str(board.best.checkpoint), other)
    (other / "manifest.json").write_text(
        (other / "manifest.json").read_text().replace('"tiny"', '"another"')
    )
    registry.point("cancer", "best", registry.publish(str(other), "cancer").record.version)
    release = again()
    assert again() == release  # the same release as before


def board_against(baseline: float, *, is_tie: bool, metric: str = "f1_macro") -> Leaderboard:
    winner = Entry("one", "trial", validation={metric: 0.6}, checkpoint="-")
    other = Entry("TF-IDF + logistic regression", "reference", validation={metric: baseline})
    difference = 0.6 - baseline
    pairing = Pairing(
        other.name,
        "validation",
        Comparison(difference, difference - 0.01, difference + 0.01, 0.01),
        is_tie,
    )
    return Leaderboard(
        "tiny",
        metric,
        (winner, other),
        "one",
        None,
        (),
        (pairing,),
        {"validation": 12, "test": 12},
        1,
    )


@pytest.mark.parametrize(("metric", "better"), [("f1_macro", 0.9), ("perplexity", 0.3)])
def test_a_winner_that_a_baseline_beats_on_validation_rows_is_not_published(
    tmp_path: Path, metric: str, better: float
) -> None:
    study = tiny.study(tmp_path, "publish={name: cancer}")
    board = board_against(better, is_tie=False, metric=metric)
    reason = publish.refusal(study, board)
    assert reason is not None
    assert (
        "the winner one is not published: TF-IDF + logistic regression is better on validation rows"
    ) in reason
    assert f"({metric} {better:.4f} against 0.6000)" in reason
    for reason in (
        publish.refusal(study, board_against(better, is_tie=True, metric=metric)),  # a tie
        publish.refusal(study, board_against(1.2 - better, is_tie=False, metric=metric)),
        publish.refusal(tiny.study(tmp_path, "publish={name: cancer, allow_worse: true}"), board),
        publish.refusal(tiny.study(tmp_path), board),  # nothing is to be published
    ):
        assert reason is None
