"""The predictions of a release are the same over HTTP, in `evaluate` and from `medray.load`: all
use one calibration."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support import tiny

import medray
from medray.config.study import CalibrationConfig
from medray.data import dataset
from medray.evaluation.analysis import split_sentences
from medray.evaluation.calibration import calibrate
from medray.records import AS_IT_IS, AbstentionRecord, CalibrationRecord, ReleaseRecord
from medray.registry import evaluate, loading
from medray.registry.predictions import fit_calibration
from medray.registry.registry import Registry
from medray.registry.release import Release
from medray.serving.opening import open_model
from medray.serving.schemas import AppOptions, Limits
from medray.tasks.classification import ClassifyRequest


@pytest.fixture(scope="module")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study's data, and a checkpoint; no test here changes it."""
    place = tmp_path_factory.mktemp("checkpoint_dir")
    tiny.trial(tiny.study(place, "train.epochs=1"), place).run()
    return place


def publish(checkpoint_dir: Path, folder: Path, record: CalibrationRecord) -> Release:
    (checkpoint,) = (checkpoint_dir / "trial" / "checkpoints").iterdir()
    return Registry(str(folder)).publish(checkpoint, "cancer", calibration=record)


def test_http_evaluate_and_predict_give_one_answer(checkpoint_dir: Path, tmp_path: Path) -> None:
    study = tiny.study(checkpoint_dir)
    rows = dataset.load(study.data).validation
    own = [
        max(row.probabilities)
        for row in publish(checkpoint_dir, tmp_path / "own", AS_IT_IS).load().predict(rows)
    ]
    calibrated = [
        value**0.5 / (value**0.5 + (1 - value) ** 0.5) for value in own
    ]  # temperature 2 of two labels
    threshold = float(np.median(calibrated))
    rule = AbstentionRecord(precision=0.9, level=0.9, threshold=threshold, coverage=0.5)
    record = CalibrationRecord(temperature=2.0, abstention=rule, num_rows=len(rows))
    release = publish(checkpoint_dir, tmp_path / "runs", record)

    predictions = medray.load("cancer", storage_path=str(tmp_path / "runs")).predict(
        [row.text for row in rows]
    )
    assert [row.confidence for row in predictions] == pytest.approx(calibrated, abs=1e-6)
    assert {row.abstained for row in predictions} == {True, False}

    options = AppOptions(
        releases=("cancer",),
        storage_path=str(tmp_path / "runs"),
        precision="fp32",
        token_budget=256,
    )
    with ThreadPoolExecutor(1) as thread:
        head = open_model(release, options, thread, device="cpu")
        request = ClassifyRequest(inputs=tuple(row.text for row in rows))
        served = head.answer(request, limits=Limits(), deadline=time.monotonic() + 30).predictions
    assert [answer.labels for answer in served] == [row.labels for row in predictions]
    for answer, row in zip(served, predictions, strict=True):
        assert list(answer.probabilities.values()) == pytest.approx(row.probabilities, abs=1e-3)
        assert answer.confidence == pytest.approx(row.confidence, abs=1e-3)
        if row.confidence is not None and abs(row.confidence - threshold) > 1e-3:
            assert answer.abstained == row.abstained

    evaluation = evaluate.evaluate(
        "cancer", study.data, "validation", storage_path=str(tmp_path / "runs"), log_dir=tmp_path
    )
    assert evaluation.calibration == record
    assert evaluation.analysis.abstention is not None
    assert evaluation.analysis.abstention.num_answered == sum(
        not row.abstained for row in predictions
    )
    right = [row.labels == example.labels for row, example in zip(predictions, rows, strict=True)]
    mistaken = {
        row.id: answer.confidence
        for row, answer, is_right in zip(rows, predictions, right, strict=True)
        if not is_right
    }
    assert {
        mistake.row_id: mistake.confidence for mistake in evaluation.analysis.mistakes
    } == pytest.approx(mistaken)
    assert evaluation.metrics.values["accuracy"] == pytest.approx(np.mean(right))
    assert any(
        "abstention for precision 0.9" in sentence
        for sentence in split_sentences(evaluation.analysis, record)
    )


def test_a_checkpoint_and_a_release_of_before_answer_as_they_did(
    checkpoint_dir: Path, tmp_path: Path
) -> None:
    release = publish(checkpoint_dir, tmp_path, AS_IT_IS)
    content = json.loads(release.record.model_dump_json())
    del content["calibration"]
    assert ReleaseRecord.model_validate(content).calibration == AS_IT_IS
    rows = dataset.load(tiny.study(checkpoint_dir).data).validation
    release = loading.load(release.folder())
    answers, own = release.predict(rows), release.task.predict(release.engine, rows)
    assert [(row.labels, row.probabilities) for row in answers] == [
        (row.labels, row.probabilities) for row in own
    ]
    assert not any(row.abstained for row in answers)
    assert release.predict([]) == []


def test_what_is_fitted_on_validation_rows_is_fitted_on_the_models_own_probabilities(
    checkpoint_dir: Path,
) -> None:
    rows = [
        *dataset.load(tiny.study(checkpoint_dir).data).validation
    ] * 20  # of fewer, no temperature is fitted
    (checkpoint,) = (checkpoint_dir / "trial" / "checkpoints").iterdir()
    release = loading.load(checkpoint)
    own = release.task.predict(release.engine, rows)
    config = CalibrationConfig(abstain_precision=0.5, abstain_level=0.5)
    record = fit_calibration(release.task, own, rows, config)
    assert record.temperature != 1
    assert record.abstention is not None
    answers = calibrate(release.task, record, own)
    assert np.mean([not row.abstained for row in answers]) == pytest.approx(
        record.abstention.coverage
    )
    record_without = fit_calibration(release.task, own, rows, CalibrationConfig(temperature=False))
    assert (record_without.temperature, record_without.abstention) == (1.0, None)
