"""A study of typed questions, from YAML to a release that answers them."""

from pathlib import Path

import pytest
from support import in_process, tiny
from support.watcher import RecordingWatcher

import medray
from medray.registry import evaluate
from medray.registry.registry import Registry
from medray.reports import html_report, study_data
from medray.study import preflight
from medray.types import Example


def test_typed_questions_are_ranked_calibrated_published_and_answered(tmp_path: Path) -> None:
    study = tiny.decision_study(
        tmp_path,
        "train.epochs=3",
        "calibration.abstain_precision=0.6",
        "calibration.abstain_level=0.5",
        "search={num_trials: 2, space: {train.learning_rate: {choice: [0.01, 0.02]}}}",
        "publish={name: triage, allow_worse: true}",
        num_rows=120,
    )
    preflight.check(study)
    watcher = RecordingWatcher()
    outcome = in_process.run(study, watcher)
    (audit,) = watcher.audits
    assert audit.questions["surgery"] == {"true": 60, "false": 60}
    board, source = outcome.board, study.base_models[0].source
    names = {"f1_macro", "accuracy", "log_loss", "brier", "ece", "score_mae", "score_kappa"}
    assert names | {"coverage", "answered_accuracy"} <= board.best.test.keys()
    assert board.best.test_interval is not None
    pairs = {pair.other: pair.comparison for pair in board.comparisons if pair.split == "test"}
    assert f"{source}, untuned" in pairs

    release = Registry(study.storage_path).resolve("triage@best")
    record = release.record.calibration.answers
    assert record is not None
    assert set(record.abstention) == {"cause", "surgery", "growth"}
    model = medray.load("triage@best", storage_path=study.storage_path)
    (prediction,) = model.predict(["the tumour renal growth surgery"])
    assert [answer.name for answer in prediction.answers] == ["cause", "surgery", "growth"]
    assert all(answer.confidence is not None for answer in prediction.answers)
    question = model.task.questions[1]
    (alone,) = model.predict(
        [Example("a", "the tumour renal growth surgery", questions=(question,))]
    )
    assert alone.answers[0].probabilities == pytest.approx(
        prediction.answers[1].probabilities, abs=1e-5
    )
    decisions = model.decide("the tumour renal growth surgery")
    assert [answer.value for answer in decisions.answers] == [
        answer.value for answer in prediction.answers
    ]

    evaluation = evaluate.evaluate(
        "triage@best",
        study.data,
        "test",
        storage_path=study.storage_path,
        log_dir=tmp_path / "log",
    )
    assert evaluation.metrics.values == pytest.approx(dict(board.best.test))
    assert evaluation.interval == board.best.test_interval
    assert set(evaluation.metrics.per_class) == {"cause", "surgery", "growth"}
    page = html_report.render(html_report.compose(study_data.gather(outcome.run)))
    assert "score_kappa" in page
