"""The values that many packages share: questions and their answers."""

import json
from dataclasses import asdict

from medray.types import Question, QuestionAnswer, QuestionOption


def test_questions_and_answers_survive_a_round_trip_through_json():
    question = Question("topic", "choice", "Which?", (QuestionOption("a", "first"),))
    assert Question.from_dict(json.loads(json.dumps(asdict(question)))) == question
    answer = QuestionAnswer("topic", "choice", ("a", "b"), (0.25, 0.75), confidence=0.75)
    assert QuestionAnswer.from_dict(json.loads(json.dumps(asdict(answer)))) == answer


def test_an_answer_is_the_most_probable_option_and_a_score_the_expected_level():
    answer = QuestionAnswer("pain", "score", ("none", "some", "much"), (0.2, 0.2, 0.6))
    assert answer.value == "much"
    assert answer.score == 0.2 + 2 * 0.6
    assert QuestionAnswer("pain", "score", ("b", "a"), (0.5, 0.5)).value == "b"
