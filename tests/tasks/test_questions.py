"""Typed questions about a text: which ones a release answers, and how its predictions do."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from medray.records import AS_IT_IS, AbstentionRecord, CalibrationRecord
from medray.tasks.base import questions
from medray.tasks.base.protocol import QuestionTask, Task
from medray.tasks.base.questions import QuestionError, decide, match, questions_of
from medray.tasks.choice import Options as ChoiceOptions
from medray.tasks.choice import Task as Choice
from medray.tasks.classification import Options as ClassificationOptions
from medray.tasks.classification import Task as Classification
from medray.tasks.tagging import Task as Tagging
from medray.types import (
    PREDICATE_VALUES,
    Example,
    Prediction,
    Question,
    QuestionAnswer,
    QuestionOption,
)

CLASSES = Classification(ClassificationOptions(name="classification"), ("benign", "malignant"))
FINDINGS = Classification(
    ClassificationOptions(name="classification", multi_label=True), ("asthma", "fever", "rash")
)
CHOICE = Choice(ChoiceOptions(name="choice"), ("maybe", "no", "yes"))
RECORD = CalibrationRecord(
    abstention=AbstentionRecord(precision=0.9, level=0.9, threshold=0.7, coverage=0.5)
)


def choice(name: str, instructions: str, *values: str) -> Question:
    return Question(name, "choice", instructions, tuple(map(QuestionOption, values)))


def predicate(name: str, instructions: str = "") -> Question:
    return Question(name, "predicate", instructions, tuple(map(QuestionOption, PREDICATE_VALUES)))


def answers(
    task: Task, row: Prediction, *queries: Question, record: CalibrationRecord = AS_IT_IS
) -> tuple[QuestionAnswer, ...]:
    def predict(examples: Sequence[Example]) -> list[Prediction]:
        assert [example.text for example in examples] == ["a text"]
        return [row]

    (decisions,) = decide(task, record, predict, ["a text"], queries)
    return decisions.answers


def test_a_task_with_one_label_answers_a_choice_and_one_with_several_a_predicate_each() -> None:
    (classes,), (answer,) = questions_of(CLASSES), questions_of(CHOICE)
    assert (classes.name, classes.kind, classes.values) == (
        "label",
        "choice",
        ("benign", "malignant"),
    )
    assert answer.values == ("maybe", "no", "yes")
    assert [(question.name, question.kind) for question in questions_of(FINDINGS)] == [
        ("asthma", "predicate"),
        ("fever", "predicate"),
        ("rash", "predicate"),
    ]
    assert [question.values for question in questions_of(FINDINGS)] == [PREDICATE_VALUES] * 3


def test_an_answer_has_the_name_and_the_order_of_options_of_its_request() -> None:
    row = Prediction("0", ("malignant",), (0.2, 0.8), confidence=0.8)
    query = choice("tumor", "which LABEL  does the text have?", "malignant", "benign")
    (answer,) = answers(CLASSES, row, query, record=RECORD)
    assert (answer.name, answer.values) == ("tumor", ("malignant", "benign"))
    assert (answer.probabilities, answer.value) == ((0.8, 0.2), "malignant")
    assert (answer.confidence, answer.threshold, answer.abstained) == (0.8, 0.7, False)


def test_a_label_that_a_threshold_per_class_chose_is_the_answer() -> None:
    row = Prediction("0", ("malignant",), (0.6, 0.4), confidence=0.4, abstained=True)
    (answer,) = answers(CLASSES, row, *questions_of(CLASSES), record=RECORD)
    assert (answer.value, answer.abstained) == ("malignant", True)


def test_predicates_hold_by_the_thresholds_of_their_labels_and_may_be_asked_one_by_one() -> None:
    row = Prediction("0", ("asthma", "rash"), (0.9, 0.1, 0.4), confidence=0.4)
    asthma, fever, rash = answers(FINDINGS, row, *questions_of(FINDINGS))
    assert [one.value for one in (asthma, fever, rash)] == ["true", "false", "true"]
    assert fever.probabilities == (0.1, 0.9)
    (alone,) = answers(FINDINGS, row, predicate("rash"))
    assert alone == rash
    (by_text,) = answers(FINDINGS, row, predicate("q7", 'The text has the label "fever".'))
    assert by_text == replace(fever, name="q7")


def test_a_release_with_several_labels_abstains_from_each_predicate_of_a_text() -> None:
    row = Prediction("0", (), (0.5, 0.01, 0.01), confidence=0.5, abstained=True)
    assert [one.abstained for one in answers(FINDINGS, row, *questions_of(FINDINGS))] == [True] * 3


def test_a_generated_answer_without_a_label_abstains() -> None:
    row = Prediction("0", (), (0.0, 0.0, 0.0), confidence=0.0)
    (answer,) = answers(CHOICE, row, *questions_of(CHOICE))
    assert answer.abstained


@pytest.mark.parametrize(
    "question",
    [
        choice("label", "", "malignant", "benign"),  # by name
        choice("", "", "benign", "malignant"),  # the only one with these options
        choice("", "Which label does the text have?", "benign", "malignant"),
    ],
)
def test_a_question_is_matched_by_its_name_or_its_text_with_its_options(
    question: Question,
) -> None:
    assert match(questions_of(CLASSES), [question]) == list(questions_of(CLASSES))


@pytest.mark.parametrize(
    "question",
    [
        choice("label", "", "benign", "malignant", "unclear"),
        choice("label", "", "benign"),
        choice("tumor", "Which of these is wrong?", "benign", "malignant"),
        predicate("label"),
        Question("label", "score", "", tuple(map(QuestionOption, ("benign", "malignant")))),
    ],
)
def test_a_question_that_the_release_was_not_trained_for_is_refused_with_those_it_answers(
    question: Question,
) -> None:
    with pytest.raises(QuestionError) as error:
        match(questions_of(CLASSES), [*questions_of(CLASSES), question])
    assert str(error.value) == (
        "questions.1: this release does not answer it; it answers "
        'choice "label" (benign, malignant)'
    )


def test_a_predicate_without_a_known_name_and_without_instructions_is_refused() -> None:
    with pytest.raises(QuestionError, match='predicate "asthma"; predicate "fever"'):
        match(questions_of(FINDINGS), [predicate("cough")])
    (asthma, *_) = questions_of(FINDINGS)
    with pytest.raises(QuestionError, match='it answers predicate "asthma"'):
        match([asthma], [predicate("cough")])


def test_another_question_of_a_known_name_has_no_name_whose_threshold_it_could_get() -> None:
    own = questions_of(CLASSES)
    other, same = choice("label", "Which?", "left", "right"), choice("side", "", "left", "right")
    assert match(own, [other, same], is_open=True) == [replace(other, name=""), same]


def test_a_refusal_of_a_release_with_many_labels_is_short() -> None:
    many = Classification(
        ClassificationOptions(name="classification"), tuple(f"label {n}" for n in range(500))
    )
    with pytest.raises(QuestionError) as error:
        match(questions_of(many), [predicate("cough")])
    assert str(error.value).endswith("label 11, 488 more)")


def test_a_task_without_labels_answers_no_question() -> None:
    tagging = Tagging.__new__(Tagging)
    assert questions_of(tagging) == ()
    with pytest.raises(QuestionError, match="it answers no questions"):
        match((), [predicate("cough")])


# A task that was trained on questions, as far as answers need it.

URGENT = predicate("urgent", "Is the patient in danger?")


@dataclass(frozen=True)
class Triage(Task):  # which gives it the members of any task
    takes_any_question: bool
    has_more: bool = False

    @property
    def questions(self) -> tuple[Question, ...]:
        return (URGENT,)

    def with_answers(self, examples: Sequence[Example]) -> list[Example]:
        return list(examples)

    def question_rows(self, text: str, queries: Sequence[Question]) -> list[Example]:
        return [Example(str(place), f"{one.name}: {text}") for place, one in enumerate(queries)]

    def read_answers(
        self, rows: Sequence[Prediction], queries: Sequence[Question]
    ) -> list[QuestionAnswer]:
        return [
            QuestionAnswer(one.name, one.kind, one.values, row.probabilities, row.confidence)
            for row, one in zip(rows, queries, strict=True)
        ]


def triage(takes_any_question: bool) -> Any:
    task = Triage(takes_any_question)
    assert isinstance(task, QuestionTask)
    return task


def test_a_task_of_questions_reads_its_own_wording_and_any_question_where_it_takes_any() -> None:
    texts: list[str] = []

    def predict(examples: Sequence[Example]) -> list[Prediction]:
        texts.extend(example.text for example in examples)
        return [Prediction(one.id, (), (0.75, 0.25), confidence=0.75) for one in examples]

    same = predicate("danger", "is the patient in danger?")
    other = choice("ward", "Where to?", "surgery", "medicine")
    decisions, second = decide(triage(True), AS_IT_IS, predict, ["a note", "b"], [same, other])
    assert texts == ["urgent: a note", "ward: a note", "urgent: b", "ward: b"]
    assert len({row.row_id for row in (*decisions.rows, *second.rows)}) == 4
    assert [answer.name for answer in decisions.answers] == ["danger", "ward"]
    assert decisions.answers[1].values == ("surgery", "medicine")
    with pytest.raises(QuestionError, match=r"questions\.1: .* answers predicate .urgent."):
        decide(triage(False), AS_IT_IS, predict, ["a note"], [same, other])


# How concentrated probabilities are.


@pytest.mark.parametrize(
    ("kind", "probabilities", "concentration"),
    [
        ("choice", (0.25, 0.25, 0.25, 0.25), 0.0),
        ("choice", (0.0, 1.0, 0.0), 1.0),
        ("choice", (0.5, 0.25, 0.25), 0.25),
        ("score", (1 / 3, 1 / 3, 1 / 3), 0.0),
        ("score", (0.0, 0.0, 1.0), 1.0),
        ("score", (0.5, 0.5, 0.0), 0.25),
        ("score", (0.5, 0.0, 0.5), 0.0),
    ],
)
def test_concentration_is_0_for_equal_probabilities_and_1_for_one_certain_option(
    kind: Any, probabilities: tuple[float, ...], concentration: float
) -> None:
    values = tuple(map(str, range(len(probabilities))))
    answer = QuestionAnswer("q", kind, values, probabilities)
    assert questions.concentration(answer) == pytest.approx(concentration)
