"""From a judged checkpoint to a release: what its analysis says goes along, and a rule of abstention may be another."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from medray import answering, checkpoint
from medray.data import dataset
from medray.errors import ArtifactError
from medray.registry import Registry
from medray.sections import CalibrationConfig
from medray.selection import analysis, tables
from medray.selection.analysis import Analysis, ModelAnalysis
from medray.selection.leaderboard import Entry, Leaderboard
from medray.selection.slices import Slicer
from medray.tasks.base import restore
from medray.tuning import winners
from medray.tuning.runs import ANALYSIS, LEADERBOARD, Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose only trial was judged."""
    place = tmp_path_factory.mktemp("judged")
    study = tiny.study(place)
    made = Run.start(study)
    trained = tiny.trial(study, place).run().checkpoint
    folder = made.trial_dir("one") / "checkpoints" / trained.name
    shutil.copytree(trained, folder)
    data, manifest = dataset.load(study.data), checkpoint.read(folder)
    task, own = restore(manifest.task.options, manifest.task.state), answering.stored(folder)
    record = answering.fit(task, own, data.validation, CalibrationConfig())
    judged = answering.examine(task, "validation", own, data.validation, record, Slicer.of(data.validation))
    model = ModelAnalysis("one", record, judged, replace(judged, split="test"))
    (made.folder / ANALYSIS).write_bytes(analysis.to_json(Analysis("tiny", task.labels, False, "one", (model,))))
    entry = Entry("one", "trial", validation=manifest.metrics, test=manifest.metrics, checkpoint=str(folder))
    board = Leaderboard("tiny", "f1_macro", (entry,), "one", None, (), (), {"validation": 12, "test": 12}, 1)
    (made.folder / LEADERBOARD).write_text(tables.to_json(board))
    return made


def test_a_winner_is_published_with_its_calibration_and_behaviour(run: Run, tmp_path: Path) -> None:
    found = run.analysis()
    assert found is not None
    record = winners.publish(Registry(str(tmp_path)), str(run.folder), "cancer").record
    assert record.calibration == found.best.calibration
    assert record.test is not None
    assert record.test.ece == (found.best.test.before.ece, found.best.test.after.ece)
    assert record.test.answered is None  # no precision was asked for


def test_another_rule_of_abstention_is_another_version_and_the_same_one_is_not(run: Run, tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    checkpoint_dir = str(run.leaderboard().best.checkpoint)
    versions = [
        winners.publish(registry, place, "cancer", abstain_precision=precision).record.version
        for place, precision in [(str(run.folder), None), (str(run.folder), 0.5), (checkpoint_dir, 0.5), (checkpoint_dir, None)]
    ]
    assert versions == [1, 2, 2, 1]
    own, other = (registry.resolve(f"cancer@{version}").record for version in (1, 2))
    assert other.calibration.abstention is not None
    assert other.calibration.abstention.precision == 0.5
    assert other.calibration.temperature == own.calibration.temperature
    assert other.content_id == own.content_id


def test_an_abstention_is_not_fitted_where_there_are_no_rows_for_it(run: Run, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(str(run.leaderboard().best.checkpoint), alone)
    with pytest.raises(ArtifactError, match="was not judged in a run that is there"):
        winners.publish(Registry(str(tmp_path)), str(alone), "cancer", abstain_precision=0.9)
    assert winners.publish(Registry(str(tmp_path)), str(alone), "cancer").record.calibration.num_rows == 0
    settings = run.folder / "study.yaml"
    kept = settings.read_text()
    try:
        settings.write_text(kept.replace("    seed: 0", "    seed: 3"))  # of the split
        with pytest.raises(ArtifactError, match="the data or its split is another"):
            winners.publish(Registry(str(tmp_path)), str(run.folder), "cancer", abstain_precision=0.9)
    finally:
        settings.write_text(kept)
