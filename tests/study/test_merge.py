"""The effect of merging a 4-bit model on F1 is measured on validation rows, stored with the
release, and respected."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from support import in_process, tiny
from transformers import AutoModelForSequenceClassification

from medray.data import dataset
from medray.errors import ArtifactError
from medray.models import adapter, quantization
from medray.records import MergeRecord, ReleaseRecord
from medray.registry.registry import Registry
from medray.storage import checkpoint
from medray.study import candidates

SETTINGS = ("model.quantization=nf4", "train.epochs=3", "train.learning_rate=0.03")


@pytest.fixture(scope="module")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in 4 bits; no test here changes it."""
    place = tmp_path_factory.mktemp("checkpoint_dir")
    return tiny.trial(tiny.study(place, *SETTINGS), place).run().checkpoint


def record(unmerged: float, merged: float) -> MergeRecord:
    return MergeRecord(metric="f1_macro", unmerged=unmerged, merged=merged)


@pytest.mark.parametrize(
    ("merged", "is_faithful"),
    [(0.9, True), (0.895, True), (0.905, True), (0.8949, False), (0.9051, False)],
)
def test_a_merge_may_move_f1_by_half_a_point_either_way(merged: float, is_faithful: bool) -> None:
    assert record(0.9, merged).is_faithful is is_faithful


def test_a_finalist_answers_validation_rows_merged_as_well(
    checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset.load(tiny.study(checkpoint_dir.parents[2]).data)
    predictions = candidates.predict(
        str(checkpoint_dir), data.unlabelled_test(), data.validation, 1, 0
    )
    assert predictions.merged is not None
    f1 = checkpoint.read(checkpoint_dir).metrics["f1_macro"]
    assert predictions.task.score(predictions.merged, data.validation).values[
        "f1_macro"
    ] == pytest.approx(f1, abs=0.005)
    # The score is the merged model's own: it shows a merge that loses the adapter.
    monkeypatch.setattr(adapter, "merge", lambda layer: None)
    wrong = candidates.predict(str(checkpoint_dir), data.unlabelled_test(), data.validation, 1, 0)
    assert wrong.test == predictions.test
    assert wrong.merged != predictions.merged


def test_a_merged_model_that_does_not_fit_into_memory_is_not_measured_and_the_study_goes_on(
    checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = dataset.load(tiny.study(checkpoint_dir.parents[2]).data)

    def run_out(model: Any, name: str) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 224.00 MiB")

    monkeypatch.setattr(quantization, "dequantize", run_out)
    predictions = candidates.predict(
        str(checkpoint_dir), data.unlabelled_test(), data.validation, 1, 0
    )
    assert predictions.merged is None
    assert len(predictions.test) == len(data.unlabelled_test())
    assert "so its f1_macro is not measured and the release serves unmerged" in caplog.text


def test_without_4_bits_there_is_nothing_to_measure(tmp_path: Path) -> None:
    study = tiny.study(tmp_path, "train.epochs=1")
    folder = tiny.trial(study, tmp_path).run().checkpoint
    data = dataset.load(study.data)
    assert (
        candidates.predict(str(folder), data.unlabelled_test(), data.validation, 1, 0).merged
        is None
    )
    assert Registry(str(tmp_path / "registry")).publish(folder, "cancer").serves_merged()


def test_a_merge_that_moves_f1_is_neither_served_nor_exported(
    checkpoint_dir: Path, tmp_path: Path
) -> None:
    release = Registry(str(tmp_path / "registry")).publish(
        checkpoint_dir, "cancer", merge=record(0.9, 0.88)
    )
    assert not release.serves_merged()
    with pytest.raises(
        ArtifactError,
        match=(
            r"cancer@1: the merged model's validation f1_macro is 0\.8800 instead of 0\.9000, and "
            r"the "
            r"largest allowed difference is 0\.005"
        ),
    ):
        release.export(tmp_path / "merged", merged=True)
    assert not (tmp_path / "merged").exists()
    release.export(tmp_path / "adapter", merged=False)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "with QLoRA (nf4)" in card
    assert "0.9000 in 4 bits, 0.8800 merged" in card


def test_a_merge_that_was_not_measured_is_not_served_and_its_export_says_so(
    checkpoint_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release = Registry(str(tmp_path / "registry")).publish(checkpoint_dir, "cancer")
    assert not release.serves_merged()
    with caplog.at_level(logging.WARNING):
        release.export(tmp_path / "merged", merged=True)
    assert "cancer@1: is in 4 bits" in caplog.text
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").num_labels == 2


def test_a_release_of_before_there_were_merge_records_still_reads() -> None:
    assert (
        ReleaseRecord.model_validate(
            {"name": "cancer", "version": 1, "content_id": "0" * 64, "created": ""}
        ).merge
        is None
    )


def test_a_study_keeps_what_merging_its_winner_does(tmp_path: Path) -> None:
    study = tiny.study(tmp_path, *SETTINGS, "publish={name: cancer, allow_worse: true}")
    outcome = in_process.run(study)
    assert outcome.release is not None
    merge = outcome.release.record.merge
    assert merge == record(
        outcome.board.best.validation["f1_macro"], outcome.board.best.validation_merged["f1_macro"]
    )
    assert outcome.release.serves_merged() is merge.is_faithful
    assert "merged into plain weights" in (outcome.run.folder / "leaderboard.md").read_text()
