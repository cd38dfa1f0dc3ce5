"""Analyzes answers to typed questions on the rows of a split: all of them together, and each
question as a task of its own. Pure."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medray.evaluation import bootstrap, diagnose
from medray.evaluation.analysis import (
    AnalysisSplit,
    Estimate,
    QuestionAnalysis,
    Reliability,
    SliceFigures,
    SplitAnalysis,
    WorstSlice,
)
from medray.evaluation.bootstrap import LabelResults, Tallies
from medray.evaluation.diagnose import ENOUGH_ROWS, SplitResults
from medray.evaluation.reliability import bins_of, risk_coverage
from medray.records import AnswerCalibrationRecord, CalibrationRecord
from medray.types import Bools, Example, Prediction, Question, QuestionAnswer

_NUM_RESAMPLES = 1000
_LEAST = float(np.finfo(np.float64).eps)  # a mistake with full confidence costs 36


@dataclass(frozen=True)
class AnalysisRows:
    """A model's answers on the rows of a split, with its own probabilities and calibrated ones."""

    examples: Sequence[Example]  # with the right answers
    before: Sequence[Prediction]
    after: Sequence[Prediction]
    tallies: Tallies  # of the calibrated answers
    columns: Mapping[str, Sequence[str]]  # each text's slice, by column
    # False: the questions are those of single rows, and have no figures of their own.
    has_questions: bool


@dataclass(frozen=True)
class _AnswerWithTruth:
    """An answer to a question whose right answer is known, before and after calibration."""

    row: int
    question: Question
    shares: tuple[float, ...]
    before: QuestionAnswer
    after: QuestionAnswer

    @property
    def truth(self) -> str:
        """Return the most probable right option."""
        return self.question.values[self.shares.index(max(self.shares))]

    @property
    def is_right(self) -> bool:
        return self.after.value == self.truth


def examine(
    split: AnalysisSplit, rows: AnalysisRows, record: CalibrationRecord, *, metric: str
) -> SplitAnalysis:
    """Analyze the answers; intervals are over texts."""
    metric = metric if metric.startswith("f1_") else "f1_macro"
    answers = list(_answers(rows))
    figure = _estimate(rows.tallies, metric)
    slices = tuple(_slices(rows, answers, metric))
    confidences = np.array([_confidence(answer.after) for answer in answers])
    right = np.array([answer.is_right for answer in answers])
    return SplitAnalysis(
        split=split,
        num_rows=len(rows.examples),
        metric=metric,
        figure=figure,
        confusion=(),
        per_class=(),
        before=_reliability(answers, [answer.before for answer in answers]),
        after=_reliability(answers, [answer.after for answer in answers]),
        risk_coverage=tuple(risk_coverage(confidences, right)),
        abstention=None,  # each question has a threshold of its own
        slices=slices,
        worst=_worst(slices, rows, metric, figure),
        mistakes=(),
        suspects=(),
        questions=tuple(_questions(split, rows, answers, record)) if rows.has_questions else (),
    )


def _answers(rows: AnalysisRows) -> Iterator[_AnswerWithTruth]:
    for row, (example, before, after) in enumerate(
        zip(rows.examples, rows.before, rows.after, strict=True)
    ):
        for question, shares, first, second in zip(
            example.questions, example.answers, before.answers, after.answers, strict=False
        ):
            if shares:
                yield _AnswerWithTruth(row, question, shares, first, second)


def _confidence(answer: QuestionAnswer) -> float:
    return answer.probabilities[answer.values.index(answer.value)]


def _reliability(
    answers: Sequence[_AnswerWithTruth], values: Sequence[QuestionAnswer]
) -> Reliability:
    """Return the reliability of one version of the answers. Its log loss is that against the right
    shares."""
    losses = [
        -(np.array(answer.shares) * np.log(np.clip(value.probabilities, _LEAST, 1.0))).sum()
        for answer, value in zip(answers, values, strict=True)
    ]
    return bins_of(
        np.array(list(map(_confidence, values))),
        np.array([answer.is_right for answer in answers]),
        float(np.mean(losses)),
    )


def _questions(
    split: AnalysisSplit,
    rows: AnalysisRows,
    answers: Sequence[_AnswerWithTruth],
    record: CalibrationRecord,
) -> Iterator[QuestionAnalysis]:
    by_name: dict[str, list[_AnswerWithTruth]] = defaultdict(list)
    for answer in answers:
        by_name[answer.question.name].append(answer)
    calibration = record.answers or AnswerCalibrationRecord()
    for name, own in by_name.items():
        labels = tuple(dict.fromkeys(value for each in own for value in each.question.values))
        kind = own[0].question.kind
        temperature = calibration.temperatures.get(kind, 1.0)
        figures = diagnose.examine(
            split,
            SplitResults(
                [rows.examples[answer.row].id for answer in own],
                LabelResults(
                    np.array([[label == answer.truth for label in labels] for answer in own]),
                    np.array([[label == answer.after.value for label in labels] for answer in own]),
                ),
                np.array([_in_order(answer.before, labels) for answer in own]),
                {},
            ),
            CalibrationRecord(
                temperature=temperature,
                abstention=calibration.abstention.get(name) or calibration.abstention.get(kind),
                num_rows=record.num_rows,
            ),
            labels=labels,
            multi_label=False,
            metric="f1_macro",
        )
        yield QuestionAnalysis(name, labels, temperature, figures)


def _in_order(answer: QuestionAnswer, labels: Sequence[str]) -> list[float]:
    shares = dict(zip(answer.values, answer.probabilities, strict=True))
    return [shares.get(label, 0.0) for label in labels]


def _slices(
    rows: AnalysisRows, answers: Sequence[_AnswerWithTruth], metric: str
) -> Iterator[SliceFigures]:
    right, num = np.zeros(len(rows.examples)), np.zeros(len(rows.examples))
    for answer in answers:
        right[answer.row] += answer.is_right
        num[answer.row] += 1
    for column, names in rows.columns.items():
        values = np.array(names, dtype=object)
        for value in sorted(set(names)):
            inside = values == value
            if not num[inside].sum():
                continue
            yield SliceFigures(
                column,
                value,
                int(inside.sum()),
                _estimate(_part(rows.tallies, inside), metric),
                float(right[inside].sum() / num[inside].sum()),
            )


def _worst(
    slices: Sequence[SliceFigures], rows: AnalysisRows, metric: str, figure: Estimate
) -> WorstSlice | None:
    candidates = [part for part in slices if part.num_rows >= ENOUGH_ROWS]
    if len(candidates) < 2:
        return None
    worst = min(candidates, key=lambda part: part.f1.value if part.f1 else 1.0)
    inside = np.array(rows.columns[worst.column], dtype=object) == worst.value
    level = 1 - 0.05 / len(candidates)
    wide = bootstrap.interval(_part(rows.tallies, inside), metric, level=level)
    return WorstSlice(worst, len(candidates), wide.high < figure.value)


def _part(tallies: Tallies, inside: Bools) -> Tallies:
    ids = tuple(row_id for row_id, there in zip(tallies.ids, inside, strict=True) if there)
    counts = {name: values[inside] for name, values in tallies.counts.items()}
    return replace(tallies, ids=ids, counts=counts)


def _estimate(tallies: Tallies, metric: str) -> Estimate:
    bounds = bootstrap.interval(tallies, metric, num_resamples=_NUM_RESAMPLES)
    return Estimate(bootstrap.value(tallies, metric), bounds.low, bounds.high)
