"""Baselines of typed questions: shares of options, and a regression per question."""

import random
from dataclasses import replace

import pytest

from medray.evaluation import decision_scores
from medray.evaluation.answer_baselines import AnswerBaseline
from medray.types import Example, Question, QuestionOption

TOPIC = Question("topic", "choice", "about?", tuple(map(QuestionOption, ("bill", "visit"))))
PAIN = Question("pain", "score", "how much?", tuple(map(QuestionOption, ("none", "some", "much"))))
OTHER = Question("other", "choice", "?", tuple(map(QuestionOption, "abcd")))


def row(number: int, text: str, *answers: tuple[float, ...]) -> Example:
    return Example(str(number), text, questions=(TOPIC, PAIN)[: len(answers)], answers=answers)


def rows(num: int, seed: int = 0) -> list[Example]:
    """Return texts whose topic follows from one word, and some of which have a second question."""
    rng, examples = random.Random(seed), []
    for number in range(num):
        is_bill = number % 2 == 0
        words = [rng.choice(("the", "and", "with", "of")) for _ in range(5)]
        words.append("invoice" if is_bill else "monday")
        answers: list[tuple[float, ...]] = [(float(is_bill), float(not is_bill))]
        answers += [(0.0, 0.0, 1.0)] if number % 3 == 0 else []
        examples.append(row(number, " ".join(words), *answers))
    return examples


def macro_f1(examples, predictions) -> float:  # type: ignore[no-untyped-def]
    metrics = decision_scores.score(predictions, examples, lambda question: question.name)
    return metrics.values["f1_macro"]


def test_the_majority_answer_has_the_shares_of_training_answers_in_any_order_of_options() -> None:
    train = [row(0, "a", (1.0, 0.0), (0.5, 0.5, 0.0)), row(1, "b", (0.0, 1.0)), row(2, "c", ())]
    train.append(row(3, "d", (1.0, 0.0), (0.0, 1.0, 0.0)))
    baseline = AnswerBaseline.majority(train)
    backwards = replace(PAIN, options=PAIN.options[::-1])
    (prediction,) = baseline.predict([Example("x", "", questions=(TOPIC, backwards, OTHER))])
    topic, pain, other = prediction.answers
    assert topic.probabilities == pytest.approx((2 / 3, 1 / 3))
    assert pain.probabilities == pytest.approx((0.0, 0.75, 0.25))
    assert other.probabilities == (0.25,) * 4  # no training row has it
    assert (topic.value, pain.value) == ("bill", "some")


def test_counted_words_answer_a_question_that_follows_from_a_word() -> None:
    train, validation, test = rows(60), rows(30, 1), rows(30, 2)
    majority = AnswerBaseline.majority(train)
    tfidf = majority.tfidf(train, validation, macro_f1)
    assert tfidf is not None
    assert tfidf.name == "TF-IDF + logistic regression"
    predictions = tfidf.predict(test)
    for prediction, example in zip(predictions, test, strict=True):
        assert prediction.answers[0].value == ("bill", "visit")[example.answers[0].index(1.0)]
        assert len(prediction.answers) == len(example.questions)
        # All training rows have the same answer to the second question.
        assert all(answer.value == "much" for answer in prediction.answers[1:])
    assert macro_f1(test, majority.predict(test)) < macro_f1(test, predictions) == 1.0


def test_without_a_question_to_learn_there_are_no_counted_words() -> None:
    train = [row(number, "the word", (1.0, 0.0)) for number in range(4)]
    assert AnswerBaseline.majority(train).tfidf(train, [], macro_f1) is None
    train = [row(number, "? !", (1.0 * (number % 2), 1.0 - number % 2)) for number in range(4)]
    assert AnswerBaseline.majority(train).tfidf(train, [], macro_f1) is None
