"""A study of typed questions, from YAML to a release that answers them."""

from pathlib import Path

import pytest
from support import in_process, tiny
from support.watcher import RecordingWatcher

import medray
from medray.errors import ConfigError
from medray.registry import evaluate, loading
from medray.registry.registry import Registry
from medray.reports import html_report, review, study_data
from medray.runtime.cluster import Cluster, Node
from medray.study import preflight
from medray.study.estimate import BaseEstimate, Speed, estimate
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
    assert pairs.keys() >= {f"{source}, untuned", "majority", "TF-IDF + logistic regression"}
    assert outcome.analysis is not None
    on_test = outcome.analysis.best.test
    assert on_test.figure.value == pytest.approx(board.best.test["f1_macro"])

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
    assert evaluation.analysis is not None
    assert evaluation.analysis.after == on_test.after
    for part in on_test.questions:
        figures = evaluation.metrics.per_class[part.name]
        assert part.figures.abstention is not None
        assert part.figures.abstention.coverage == pytest.approx(figures["coverage"])
        assert part.figures.figure.value == pytest.approx(figures["f1_macro"])
    page = html_report.render(html_report.compose(study_data.gather(outcome.run)))
    assert "answers to test rows, by question" in page
    assert "Abstention by question" in page
    rows = review.rows(on_test)
    assert {row.question for row in rows} == {
        part.name for part in on_test.questions if part.figures.mistakes or part.figures.suspects
    }
    assert review.render(rows[0]).startswith(f"{rows[0].id}, {rows[0].question}: label ")


def test_an_encoder_and_a_decoder_answer_the_questions_of_one_study(tmp_path: Path) -> None:
    encoder = tiny.base(tmp_path, "bert")
    study = tiny.decision_study(tmp_path, "train.epochs=4", "publish={name: triage}", num_rows=90)
    decoder = study.base_models[0].source
    study = tiny.decision_study(
        tmp_path,
        "train.epochs=4",
        f"base_models=[{{source: {decoder}}}, {{source: {encoder}}}]",
        "publish={name: triage, allow_worse: true}",
    )
    preflight.check(study)
    outcome = in_process.run(study, RecordingWatcher())
    references = {entry.name for entry in outcome.board.entries if entry.kind == "reference"}
    assert references == {f"{decoder}, untuned", "majority", "TF-IDF + logistic regression"}
    trials = {entry.base_model: entry for entry in outcome.board.entries if entry.kind == "trial"}
    text = "the tumour renal growth surgery"
    answers = []
    for source, has_head in ((decoder, False), (str(encoder), True)):
        release = loading.load(trials[source].checkpoint)
        assert (release.task.head() is not None) == has_head
        (row,) = release.predict([text])
        assert [answer.name for answer in row.answers] == ["cause", "surgery", "growth"]
        answers.append(release.decide(text).answers)
    assert [row.values for row in answers[0]] == [row.values for row in answers[1]]
    with pytest.raises(ConfigError, match="adds a new head"):
        evaluate.evaluate_base_model(
            study.trial(study.base_models[1]), "validation", log_dir=tmp_path / "log"
        )


def test_a_plan_counts_the_options_of_a_text_as_rows_of_an_encoder(tmp_path: Path) -> None:
    cluster = Cluster((Node(cpus=2, gpus=0),), dashboard=None, is_joined=False)

    def plan(token_budget: int) -> BaseEstimate:
        study = tiny.decision_study(tmp_path, f"train.token_budget={token_budget}", family="bert")
        speed = Speed(tokens_per_s=1000)
        return estimate(study, cluster, memory_bytes=None, speed=speed).bases[0]

    small = plan(16)
    assert (small.rows.num_labels, small.rows.least_rows) == (1, 8)
    assert small.rows.longest < small.rows.mean  # of all options of a text
    assert plan(8 * small.rows.longest).footprint == small.footprint
    assert plan(9 * small.rows.longest).footprint.peak > small.footprint.peak
