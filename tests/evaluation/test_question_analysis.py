"""The analysis of answers to typed questions: all together, and per question."""

from dataclasses import replace

import numpy as np
import pytest
from evaluation.test_decision_scores import PAIN, TOPIC, by_name, columns, rows
from sklearn.metrics import confusion_matrix

from medray.config.study import CalibrationConfig
from medray.evaluation import answer_calibration, decision_scores
from medray.evaluation.analysis import SplitAnalysis
from medray.evaluation.bootstrap import interval
from medray.evaluation.calibration import calibrate
from medray.evaluation.question_analysis import AnalysisRows, examine


class NoLabels:
    labels = ()

    def head(self) -> None:
        return None


def look(predictions, examples, record, **changes) -> SplitAnalysis:  # type: ignore[no-untyped-def]
    after = calibrate(NoLabels(), record, predictions)
    tallies = decision_scores.tally(after, examples, by_name)
    parts = [str(number % 3) for number in range(len(examples))]
    own = AnalysisRows(examples, predictions, after, tallies, {"ward": parts}, True)
    return examine("test", replace(own, **changes), record, metric="f1_macro")


def record_of(predictions, examples):  # type: ignore[no-untyped-def]
    config = CalibrationConfig(abstain_precision=0.6)
    return answer_calibration.fit(predictions, examples, config)


def test_each_question_is_analyzed_as_a_task_of_its_own() -> None:
    predictions, examples = rows(120)
    record = record_of(*rows(200, seed=1))
    result = look(predictions, examples, record)
    assert [part.name for part in result.questions] == ["topic", "pain"]
    for at, part in enumerate(result.questions):
        truth, probabilities = columns(predictions, examples, at)
        most_probable = probabilities.argmax(axis=1)
        assert (
            np.array(part.figures.confusion).tolist()
            == confusion_matrix(truth, most_probable).tolist()
        )
        wrong = {examples[row].id for row in np.flatnonzero(np.array(truth) != most_probable)}
        assert {mistake.row_id for mistake in part.figures.mistakes} == wrong
        rule = record.answers.abstention[part.name]
        assert part.figures.abstention is not None
        assert part.figures.abstention.threshold == rule.threshold
        assert part.labels == (TOPIC, PAIN)[at].values
    assert result.questions[0].temperature == record.answers.temperatures["choice"] > 1


def test_the_figures_of_all_questions_are_over_texts() -> None:
    predictions, examples = rows(120)
    record = record_of(*rows(200, seed=1))
    result = look(predictions, examples, record)
    after = calibrate(NoLabels(), record, predictions)
    tallies = decision_scores.tally(after, examples, by_name)
    whole, bounds = tallies.whole(), interval(tallies, "f1_macro", num_resamples=1000)
    assert result.num_rows == 120
    assert result.figure.value == pytest.approx(whole["f1_macro"])
    assert (result.figure.low, result.figure.high) == (bounds.low, bounds.high)
    assert sum(part.num for part in result.after.bins) == 240
    assert result.after.ece == pytest.approx(whole["ece"])
    assert result.after.log_loss == pytest.approx(whole["log_loss"])
    assert result.after.log_loss < result.before.log_loss
    assert result.risk_coverage[0].precision == pytest.approx(whole["accuracy"])
    (first, *_) = result.slices
    part = decision_scores.tally(after[::3], examples[::3], by_name).whole()
    assert (first.column, first.value, first.num_rows) == ("ward", "0", 40)
    assert first.f1.value == pytest.approx(part["f1_macro"])
    assert first.share_right == pytest.approx(part["accuracy"])
    assert result.worst is not None


def test_soft_answers_count_by_their_most_probable_option_and_missing_ones_not_at_all() -> None:
    predictions, examples = rows(40)
    soft = [
        replace(example, answers=((0.2, 0.5, 0.3), () if number % 2 else example.answers[1]))
        for number, example in enumerate(examples)
    ]
    result = look(predictions, soft, record_of(predictions, soft))
    topic, pain = result.questions
    assert [sum(row) for row in topic.figures.confusion] == [0, 40, 0]
    assert pain.figures.num_rows == 20
    assert (
        look(predictions, soft, record_of(predictions, soft), has_questions=False).questions == ()
    )
