"""The questions that a release answers about a text. A task with labels answers one choice among
them, or a predicate per label; a `QuestionTask` has questions of its own. Knows no HTTP."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from medray.client.answers import Citations
from medray.errors import ConfigError, DataError
from medray.evaluation.calibration import is_multi_label
from medray.records import CalibrationRecord
from medray.tasks.base.labels import check_one_label
from medray.tasks.base.protocol import Calibrated, QuestionTask, Task
from medray.types import (
    PREDICATE_VALUES,
    Example,
    Prediction,
    Question,
    QuestionAnswer,
    QuestionOption,
)

LABEL = "label"  # the name of the choice among the labels of a task
_LISTING_SIZE = 12  # questions in an error, and options of each
Values = tuple[str, frozenset[str]]  # the kind of a question and its options in any order


class QuestionError(ConfigError):
    """A question that the release does not answer. The message repeats nothing of it."""


class SameOptionsError(DataError):
    """Two options of a question are the same tokens for a base model."""


@dataclass(frozen=True, slots=True, repr=False)
class Decisions:
    """The answers to questions about a text, and the predictions from which they are read."""

    answers: tuple[QuestionAnswer, ...]
    rows: tuple[Prediction, ...]
    citations: tuple[Citations, ...] = ()  # one per answer, if requested

    def __repr__(self) -> str:
        return "\n".join(
            f"{one.name}: {one.value}, {one.probabilities[one.values.index(one.value)]:.2f}"
            + (", abstained" if one.abstained else "")
            for one in self.answers
        )


def questions_of(task: Task) -> tuple[Question, ...]:
    """Return the questions that a task was trained for; a task without labels has none."""
    if isinstance(task, QuestionTask):
        return task.questions
    if not isinstance(task, Calibrated):
        return ()
    if is_multi_label(task):
        truth = tuple(map(QuestionOption, PREDICATE_VALUES))
        return tuple(
            Question(label, "predicate", f'The text has the label "{label}".', truth)
            for label in task.labels
        )
    labels = tuple(map(QuestionOption, task.labels))
    return (Question(LABEL, "choice", "Which label does the text have?", labels),)


def label_question(
    instructions: str | None, examples: Sequence[Example], train: Sequence[Example]
) -> Question:
    """Return the choice among the labels of all examples."""
    where = train[0].where or train[0].id
    if instructions is None:
        raise DataError(
            f"{where}: the row has no questions; give it questions, or set task.label_question if "
            "it has a label"
        )
    check_one_label(examples)
    labels = sorted({label for example in examples for label in example.labels})
    if len(labels) < 2:
        raise DataError(
            f"{where}: the rows have {len(labels)} labels ({', '.join(labels)}); a choice needs at "
            "least two"
        )
    return Question(LABEL, "choice", instructions, tuple(map(QuestionOption, labels)))


def match(
    own: Sequence[Question], questions: Sequence[Question], *, is_open: bool = False
) -> list[Question]:
    """Return a release's own question for each one: that of the same name and options, or that of
    the same instructions and options. Options may be in any order.

    Where there is none, raise, or return the question itself if the release takes any. A choice or
    score without instructions matches the only one with its options; all predicates have the same
    ones."""
    by_name = {(question.name, *_values(question)): question for question in own}
    by_text = {(_plain(question), *_values(question)): question for question in own}
    names = {question.name for question in own}
    by_values: dict[Values, list[Question]] = {}
    for question in own:
        by_values.setdefault(_values(question), []).append(question)
    matches = []
    for place, question in enumerate(questions):
        values = _values(question)
        entry = by_name.get((question.name, *values)) or by_text.get((_plain(question), *values))
        has_only_options = question.kind != "predicate" and not _plain(question)
        if entry is None and has_only_options and len(by_values.get(values, ())) == 1:
            (entry,) = by_values[values]
        if entry is None and not is_open:
            raise QuestionError(
                f"questions.{place}: this release does not answer it; it answers {_listing(own)}"
            )
        # Another question of a known name must not get that one's threshold.
        free = replace(question, name="") if question.name in names else question
        matches.append(entry or free)
    return matches


def decide(
    task: Task,
    record: CalibrationRecord,
    predict: Callable[[Sequence[Example]], Sequence[Prediction]],
    texts: Sequence[str],
    questions: Sequence[Question],
) -> list[Decisions]:
    """Answer questions about each text; `predict` returns calibrated predictions of rows. Each
    answer has its question's name and order of options."""
    is_open = isinstance(task, QuestionTask) and task.takes_any_question
    own = match(questions_of(task), questions, is_open=is_open)
    if isinstance(task, QuestionTask):
        groups = [
            [replace(row, id=f"{number}-{row.id}") for row in task.question_rows(text, own)]
            for number, text in enumerate(texts)
        ]
        predictions = iter(predict([row for group in groups for row in group]))
        rows_by_text = [list(islice(predictions, len(group))) for group in groups]
        answers_by_text = [task.read_answers(rows, own) for rows in rows_by_text]
    else:
        rows_by_text = [
            [row] for row in predict([Example(str(at), text) for at, text in enumerate(texts)])
        ]
        threshold = record.abstention.threshold if record.abstention else None
        answers_by_text = [
            [
                replace(_of_labels(task.labels, row, question), threshold=threshold)
                for question in own
            ]
            for (row,) in rows_by_text
        ]
    return [
        Decisions(tuple(map(_as_in, questions, answers)), tuple(rows))
        for answers, rows in zip(answers_by_text, rows_by_text, strict=True)
    ]


def _of_labels(labels: Sequence[str], row: Prediction, question: Question) -> QuestionAnswer:
    """Return the answer that a prediction of labels gives. A text without any label, which a
    generated answer may name none of, abstains from a choice.

    A multi-label release abstains from a text, so from each of its predicates."""
    if question.kind == "choice":
        probabilities: Mapping[str, float] = dict(zip(labels, row.probabilities, strict=True))
        choice = row.labels[0] if row.labels else ""
    else:
        share = row.probabilities[labels.index(question.name)]
        probabilities = dict(zip(PREDICATE_VALUES, (share, 1 - share), strict=True))
        choice = PREDICATE_VALUES[question.name not in row.labels]
    return QuestionAnswer(
        question.name,
        question.kind,
        question.values,
        tuple(probabilities[value] for value in question.values),
        confidence=row.confidence,
        abstained=row.abstained or not choice,
        choice=choice,
    )


def _as_in(question: Question, answer: QuestionAnswer) -> QuestionAnswer:
    shares = dict(zip(answer.values, answer.probabilities, strict=True))
    probabilities = tuple(shares[value] for value in question.values)
    return replace(answer, name=question.name, values=question.values, probabilities=probabilities)


def concentration(answer: QuestionAnswer) -> float:
    """Return how concentrated the probabilities are: 0 for equal ones, 1 if one option has all. It
    is the `confidence` of both wire formats, and no chance of being right.

    For a choice it follows from the largest probability; for a score, from the mean distance to
    the most probable level, relative to that of equal probabilities."""
    shares = answer.probabilities
    count, most = len(shares), max(shares)
    if count < 2:
        return 1.0
    if answer.kind != "score":
        return max(0.0, (most - 1 / count) / (1 - 1 / count))
    mode = shares.index(most)
    spread = sum(share * abs(place - mode) for place, share in enumerate(shares))
    even_spread = sum(abs(place - (count - 1) / 2) for place in range(count)) / count
    return max(0.0, 1 - spread / even_spread)


def _values(question: Question) -> Values:
    return question.kind, frozenset(question.values)


def _plain(question: Question) -> str:
    return " ".join(question.instructions.casefold().split())


def _listing(questions: Sequence[Question]) -> str:
    if not questions:
        return "no questions"
    return _shorten(
        (
            f'{question.kind} "{question.name}"'
            + ("" if question.kind == "predicate" else f" ({_shorten(question.values, ', ')})")
            for question in questions
        ),
        "; ",
    )


def _shorten(words: Iterable[str], separator: str) -> str:
    entries = list(words)
    rest = [f"{len(entries) - _LISTING_SIZE} more"] if len(entries) > _LISTING_SIZE else []
    return separator.join(entries[:_LISTING_SIZE] + rest)
