"""Calibration: a temperature for the confidences, and a threshold below which a model abstains.

Both are fitted on validation rows and applied everywhere. Pure numpy: each function takes
probabilities and truth of any task, with one label per row or any number of labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from medray.evaluation.bootstrap import share_bound
from medray.evaluation.metrics import log_loss
from medray.records import (
    AbstentionRecord,
    AnswerCalibrationRecord,
    CalibrationRecord,
    TextCalibrationRecord,
)
from medray.types import Bools, Floats, Head, Prediction, QuestionAnswer

_TINY = float(np.finfo(np.float64).tiny)
_FLAT, _STEEP = 20.0, 0.05  # the range of temperatures
# A temperature must gain this much log-likelihood: it makes the rows twenty times as likely.
_LEAST_GAIN = 3.0
PRIOR_ROWS = 50  # docs/lab-notes.md has the measurements behind this number
MEAN, LEAST = "mean_logprob", "least_logprob"  # of a text's tokens, in figures of a prediction
_STEPS = 50  # the number of coverages to choose the threshold from


class LabelTask(Protocol):
    """The members of a task that calibration uses."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    def head(self) -> Head | None: ...


def calibrate(
    task: LabelTask, record: CalibrationRecord, predictions: Sequence[Prediction]
) -> list[Prediction]:
    """Return the predictions with calibrated probabilities, confidences and abstentions.
    A text has a confidence where the release's task can grade answers. Mentions do not change.

    The task decides the labels from the model's own probabilities. Calibration changes
    confidences, never labels."""
    if predictions and predictions[0].answers:
        answers = record.answers or AnswerCalibrationRecord()
        return [
            replace(row, answers=tuple(_calibrate_answer(answers, each) for each in row.answers))
            for row in predictions
        ]
    if record.texts and predictions and not task.labels:
        return [_calibrate_text(record, record.texts, row) for row in predictions]
    if not predictions or not task.labels:
        return list(predictions)
    predicted_labels = np.array(
        [[label in row.labels for label in task.labels] for row in predictions]
    )
    calibrated = apply(
        record, matrix(predictions), predicted_labels, multi_label=is_multi_label(task)
    )
    return [
        replace(row, probabilities=tuple(probabilities), confidence=sure, abstained=abstained)
        for row, probabilities, sure, abstained in zip(
            predictions,
            calibrated.probabilities.tolist(),
            calibrated.confidence.tolist(),
            calibrated.abstained.tolist(),
            strict=True,
        )
    ]


def _calibrate_answer(record: AnswerCalibrationRecord, answer: QuestionAnswer) -> QuestionAnswer:
    if answer.is_refusal:
        return answer
    probabilities = rescale(
        np.array([answer.probabilities]),
        record.temperatures.get(answer.kind, 1.0),
        multi_label=False,
    )[0]
    sure = float(probabilities[answer.values.index(answer.value)])
    rule = record.abstention.get(answer.kind if record.by_kind else answer.name)
    return replace(
        answer,
        probabilities=tuple(probabilities.tolist()),
        confidence=sure,
        abstained=_abstains(rule, sure),
        threshold=rule.threshold if rule else None,
    )


def _calibrate_text(
    record: CalibrationRecord, curve: TextCalibrationRecord, row: Prediction
) -> Prediction:
    if MEAN not in row.figures:  # a refusal
        return row
    sure = text_confidence(curve, row.figures)
    return replace(row, confidence=sure, abstained=_abstains(record.abstention, sure))


def _abstains(rule: AbstentionRecord | None, sure: float) -> bool:
    return rule is not None and (rule.threshold is None or sure < rule.threshold)


def text_confidence(curve: TextCalibrationRecord, figures: Mapping[str, float]) -> float:
    """Return the chance that a generated answer is right."""
    odds = curve.intercept + curve.mean * figures[MEAN] + curve.least * figures[LEAST]
    return float(np.exp(-np.logaddexp(0.0, -odds)))


def is_multi_label(task: LabelTask) -> bool:
    head = task.head()
    return head is not None and head.multi_label


def matrix(predictions: Sequence[Prediction]) -> Floats:
    return np.array([row.probabilities for row in predictions], dtype=np.float64)


@dataclass(frozen=True)
class CalibratedPredictions:
    """Calibrated values, one per row."""

    probabilities: Floats
    confidence: Floats
    abstained: Bools


def apply(
    record: CalibrationRecord, probabilities: Floats, predictions: Bools, *, multi_label: bool
) -> CalibratedPredictions:
    """Apply a release's calibration to predictions whose labels are decided already."""
    rescaled_probabilities = rescale(probabilities, record.temperature, multi_label=multi_label)
    confidences = confidence(rescaled_probabilities, predictions, multi_label=multi_label)
    rule = record.abstention
    if rule is None:
        abstained = np.zeros(len(confidences), dtype=np.bool_)
    elif rule.threshold is None:
        abstained = np.ones(len(confidences), dtype=np.bool_)
    else:
        abstained = confidences < rule.threshold
    return CalibratedPredictions(rescaled_probabilities, confidences, abstained)


def confidence(probabilities: Floats, predictions: Bools, *, multi_label: bool) -> Floats:
    """Return the probability of each row's label. For a multi-label task, return that of the
    row's least certain decision on a label."""
    if multi_label:
        least: Floats = np.where(predictions, probabilities, 1 - probabilities).min(axis=1)
        return least
    confidences: Floats = np.where(predictions, probabilities, 0.0).sum(axis=1)
    return confidences


def rescale(probabilities: Floats, temperature: float, *, multi_label: bool) -> Floats:
    if temperature == 1:
        return probabilities
    if multi_label:
        yes, no = _log(probabilities) / temperature, _log(1 - probabilities) / temperature
        result: Floats = np.exp(yes - np.logaddexp(yes, no))
        return result
    logits = _log(probabilities) / temperature
    result = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    return result


def fit(
    probabilities: Floats,
    truth: Bools,
    predictions: Bools,
    *,
    multi_label: bool,
    scale: bool = True,
    precision: float | None,
    level: float,
) -> CalibrationRecord:
    """Fit a temperature and, if a target precision is set, an abstention threshold. The threshold
    reaches the precision with probability `level`."""
    temperature = fit_temperature(probabilities, truth, multi_label=multi_label) if scale else 1.0
    record = CalibrationRecord(temperature=temperature, num_rows=len(truth))
    if precision is None:
        return record
    confidences = apply(record, probabilities, predictions, multi_label=multi_label).confidence
    rule = fit_abstention(confidences, (truth == predictions).all(axis=1), precision, level)
    return record.model_copy(update={"abstention": rule})


def fit_temperature(probabilities: Floats, truth: Bools, *, multi_label: bool) -> float:
    """Return the temperature that makes these rows most likely, or 1 if chance explains the
    gain."""
    from scipy.optimize import minimize_scalar

    yes, no = _log(probabilities), _log(1 - probabilities)
    own = (
        probabilities
        if multi_label
        else np.exp(yes - np.logaddexp.reduce(yes, axis=1, keepdims=True))
    )  # normalized to sums of 1
    targets = mix(truth, own)

    def loss(log_inverse: float) -> float:
        # The loss is a linear term plus a log-sum-exp of the inverse: convex, with one minimum.
        inverse = np.exp(log_inverse)
        if multi_label:
            return float(
                (
                    np.logaddexp(yes * inverse, no * inverse)
                    - inverse * (targets * yes + (1 - targets) * no)
                ).mean()
            )
        return float(
            (
                np.logaddexp.reduce(yes * inverse, axis=1) - inverse * (targets * yes).sum(axis=1)
            ).mean()
        )

    best = minimize_scalar(loss, bounds=(-np.log(_FLAT), -np.log(_STEEP)), method="bounded")
    temperature = float(np.exp(-best.x))
    before, after = (
        log_loss(
            rescale(probabilities, value, multi_label=multi_label), truth, multi_label=multi_label
        )
        for value in (1.0, temperature)
    )
    return temperature if len(truth) * (before - after) > _LEAST_GAIN else 1.0


def fit_abstention(
    confidences: Floats, right: Bools, precision: float, level: float
) -> AbstentionRecord:
    """Return the lowest threshold above which the share of right answers is at least `precision`
    with probability `level`.

    Thresholds are tested from the highest down, each by an exact bound, until one fails. The error
    of this fixed sequence of tests is that of one test. The first threshold is the one that is most
    likely to pass by the confidences alone, without the labels."""
    from scipy.stats import poisson

    order = np.argsort(-confidences, kind="stable")
    descending, hits = confidences[order], np.cumsum(right[order])
    expected_errors = np.cumsum(1 - descending)
    # The last row of each run of equal confidences.
    ends = np.append(np.flatnonzero(np.diff(descending)), len(descending) - 1)
    steps = np.unique(
        np.searchsorted(ends + 1, len(descending) * np.arange(1, _STEPS + 1) / _STEPS)
    )
    counts = ends[steps[steps < len(ends)]] + 1
    most_errors = _most_errors(counts.tolist(), precision, level)
    # -1, which means that even no error proves nothing, has the probability 0.
    likely = poisson.cdf(most_errors, expected_errors[counts - 1])
    num_answered = 0
    for place in range(int(np.argmax(likely)), len(counts)):
        if counts[place] - hits[counts[place] - 1] > most_errors[place]:
            break
        num_answered = int(counts[place])
    if not num_answered:
        return AbstentionRecord(precision=precision, level=level, threshold=None, coverage=0.0)
    # The threshold lies half way to the next row. On a row's confidence itself, the last bit of
    # another device would change that row's answer.
    below = descending[num_answered] if num_answered < len(descending) else 0.0
    return AbstentionRecord(
        precision=precision,
        level=level,
        threshold=float((descending[num_answered - 1] + below) / 2),
        coverage=num_answered / len(descending),
    )


def _most_errors(counts: Sequence[int], precision: float, level: float) -> list[int]:
    """Return how many errors each number of answers allows, or -1 if even no error is not proof
    enough. More answers never allow fewer errors."""
    most, errors = [], -1
    for count in counts:
        while (
            errors < count - 1 and share_bound(count - errors - 1, count, level=level) >= precision
        ):
            errors += 1
        most.append(errors)
    return most


def _log(probabilities: Floats) -> Floats:
    result: Floats = np.log(np.clip(probabilities, _TINY, 1.0))
    return result


def mix(truth: npt.ArrayLike, probabilities: Floats) -> Floats:
    """Return the truth mixed with the model's probabilities, which have the weight of
    `PRIOR_ROWS` rows."""
    num_rows = len(probabilities)
    mixture: Floats = (
        num_rows * np.asarray(truth, dtype=np.float64) + PRIOR_ROWS * probabilities
    ) / (num_rows + PRIOR_ROWS)
    return mixture
