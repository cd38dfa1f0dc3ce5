"""Figures of answers to typed questions against scikit-learn, their intervals over texts, and the
calibration of answers."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score, log_loss

from medray.config.study import CalibrationConfig
from medray.errors import DataError
from medray.evaluation import answer_calibration, decision_scores
from medray.evaluation.bootstrap import compare, interval
from medray.evaluation.calibration import calibrate
from medray.records import AS_IT_IS, AbstentionRecord, AnswerCalibrationRecord, CalibrationRecord
from medray.types import Example, Prediction, Question, QuestionAnswer, QuestionOption

TOPIC = Question("topic", "choice", "?", tuple(map(QuestionOption, "abc")))
PAIN = Question("pain", "score", "?", tuple(map(QuestionOption, ("0", "1", "2", "3"))))


def rows(num=80, seed=0, sharpness=3.0):
    """Return texts with two questions, whose answers are right more often than not."""
    rng = np.random.default_rng(seed)
    examples, predictions = [], []
    for number in range(num):
        shares, answers = [], []
        for question in (TOPIC, PAIN):
            truth = int(rng.integers(len(question.options)))
            scores = rng.normal(size=len(question.options)) * 2
            scores[truth] += 2
            weights = np.exp(sharpness * scores)
            shares.append(tuple(np.eye(len(question.options))[truth].tolist()))
            probabilities = tuple((weights / weights.sum()).tolist())
            answers.append(
                QuestionAnswer(question.name, question.kind, question.values, probabilities)
            )
        examples.append(Example(str(number), "x", questions=(TOPIC, PAIN), answers=tuple(shares)))
        predictions.append(Prediction(str(number), (), (), answers=tuple(answers)))
    return predictions, examples


def columns(predictions, examples, at):
    truth = [int(np.argmax(example.answers[at])) for example in examples]
    probabilities = np.array([row.answers[at].probabilities for row in predictions])
    return truth, probabilities


def by_name(question):
    return question.name


def test_the_figures_are_those_of_scikit_learn():
    predictions, examples = rows()
    metrics = decision_scores.score(predictions, examples, by_name)
    (topic, of_topic), (pain, of_pain) = (columns(predictions, examples, at) for at in (0, 1))
    levels = of_pain.argmax(1)
    f1 = [
        f1_score(topic, of_topic.argmax(1), average="macro"),
        f1_score(pain, levels, average="macro"),
    ]
    values = metrics.values
    assert values["f1_macro"] == pytest.approx(np.mean(f1))
    assert metrics.per_class["topic"]["f1_macro"] == pytest.approx(f1[0])
    hits = [*(of_topic.argmax(1) == topic), *(levels == pain)]
    assert values["accuracy"] == pytest.approx(np.mean(hits))
    losses = [log_loss(topic, of_topic), log_loss(pain, of_pain)]
    assert values["log_loss"] == pytest.approx(np.mean(losses))
    brier = [((of_topic - np.eye(3)[topic]) ** 2).sum(1), ((of_pain - np.eye(4)[pain]) ** 2).sum(1)]
    assert values["brier"] == pytest.approx(np.mean(brier))
    assert values["score_kappa"] == pytest.approx(
        cohen_kappa_score(pain, levels, weights="quadratic")
    )
    mean_level = of_pain @ np.arange(4)
    assert values["score_mae"] == pytest.approx(np.abs(mean_level - pain).mean())
    assert 0 < values["ece"] < 0.5
    assert "coverage" not in values
    assert metrics.num_rows == 80


def test_intervals_resample_texts_and_pairs_compare_on_the_same_texts():
    predictions, examples = rows()
    others, same_examples = rows(sharpness=-1.0)
    good, poor = (decision_scores.tally(each, examples, by_name) for each in (predictions, others))
    assert examples == same_examples
    bounds = interval(good, "accuracy")
    assert bounds.low < float(good.whole()["accuracy"]) < bounds.high
    twice = decision_scores.tally(
        [*predictions, *predictions], [*examples, *examples], by_name
    ).in_units(np.tile(np.arange(80), 2))
    again = interval(twice, "accuracy")
    assert (again.low, again.high) == pytest.approx((bounds.low, bounds.high))
    assert compare(good, poor, "brier").high < 0


def test_questions_without_an_answer_do_not_count_and_none_at_all_is_an_error():
    predictions, examples = rows(4)
    half = [
        Example(each.id, "x", questions=each.questions, answers=(each.answers[0], ()))
        for each in examples
    ]
    metrics = decision_scores.score(predictions, half, by_name)
    assert set(metrics.per_class) == {"topic"}
    assert "score_mae" not in metrics.values
    with pytest.raises(DataError, match="no row has an answer to score"):
        decision_scores.score(predictions, [each.without_answer() for each in examples], by_name)


def test_soft_answers_are_scored_by_their_shares():
    answer = QuestionAnswer("topic", "choice", TOPIC.values, (0.5, 0.3, 0.2))
    example = Example("a", "x", questions=(TOPIC,), answers=((0.6, 0.4, 0.0),))
    values = decision_scores.score(
        [Prediction("a", (), (), answers=(answer,))], [example], by_name
    ).values
    assert values["log_loss"] == pytest.approx(-0.6 * np.log(0.5) - 0.4 * np.log(0.3))
    assert values["brier"] == pytest.approx(0.01 + 0.01 + 0.04)
    assert values["accuracy"] == 1


def test_each_kind_has_its_temperature_and_each_question_its_threshold():
    predictions, examples = rows(400, sharpness=3.0)
    config = CalibrationConfig(abstain_precision=0.9)
    record = answer_calibration.fit(predictions, examples, config)
    assert record.answers is not None
    assert set(record.answers.temperatures) == {"choice", "score"}
    assert all(value > 1.5 for value in record.answers.temperatures.values())
    assert set(record.answers.abstention) == {"topic", "pain"}
    answers = calibrate(None, record, predictions)  # type: ignore[arg-type]
    before, after = (
        decision_scores.score(each, examples, by_name).values
        for each in (calibrate(None, AS_IT_IS, predictions), answers)  # type: ignore[arg-type]
    )
    assert after["log_loss"] < before["log_loss"]
    assert after["ece"] < before["ece"]
    assert after["accuracy"] == before["accuracy"]
    assert 0 < after["coverage"] < 1
    assert after["answered_accuracy"] >= 0.9 > after["accuracy"]
    other, truth = rows(400, seed=1)
    new = decision_scores.score(calibrate(None, record, other), truth, by_name)  # type: ignore[arg-type]
    assert new.values["answered_accuracy"] > 0.85


def test_a_threshold_of_a_kind_counts_each_text_once():
    predictions, examples = rows(200, sharpness=3.0)
    twice = [replace(row, answers=(*row.answers, *row.answers)) for row in predictions]
    truth = [replace(row, answers=(*row.answers, *row.answers)) for row in examples]
    config = CalibrationConfig(abstain_precision=0.9)
    one, two = (
        answer_calibration.fit(*both, config, by_kind=True).answers
        for both in ((predictions, examples), (twice, truth))
    )
    assert one is not None
    assert two is not None
    assert set(one.abstention) == {"choice", "score"}
    assert two.abstention == one.abstention  # the same answers again are no more proof


def test_a_release_abstains_from_a_question_below_its_threshold_or_always():
    answer = QuestionAnswer("topic", "choice", TOPIC.values, (0.5, 0.3, 0.2))
    pain = QuestionAnswer("pain", "score", PAIN.values, (0.7, 0.1, 0.1, 0.1))

    def abstains(*, by_kind=False, **thresholds):
        rules = {
            name: AbstentionRecord(precision=0.9, level=0.8, threshold=value, coverage=0.5)
            for name, value in thresholds.items()
        }
        answers = AnswerCalibrationRecord(abstention=rules, by_kind=by_kind)
        record = CalibrationRecord(answers=answers)
        (row,) = calibrate(None, record, [Prediction("a", (), (), answers=(answer, pain))])  # type: ignore[arg-type]
        assert [each.confidence for each in row.answers] == pytest.approx([0.5, 0.7])
        return [each.abstained for each in row.answers]

    assert abstains() == [False, False]
    assert abstains(topic=0.4, pain=0.8) == [False, True]
    assert abstains(topic=None) == [True, False]
    assert abstains(score=0.8) == [False, False]  # of a question with this name
    assert abstains(score=0.8, by_kind=True) == [False, True]
