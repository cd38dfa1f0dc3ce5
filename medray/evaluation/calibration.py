"""Confidences that mean what they say, a threshold below which no answer is given, and thresholds
per label that decide for macro F1.

All are fitted on validation rows and obeyed everywhere.

Pure numpy: probabilities and truth in, whatever the task. One label a row, or any number of labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from medray.evaluation.bootstrap import LabelResults, compare, share_bound
from medray.evaluation.metrics import Counts, log_loss
from medray.records import AbstentionRecord, CalibrationRecord
from medray.types import Bools, Floats, Head, Ints, Prediction

_TINY = float(np.finfo(np.float64).tiny)
_FLAT, _STEEP = 20.0, 0.05  # the widest temperatures that are looked at
_LEAST_GAIN = 3.0  # of the rows' log-likelihood: twenty times as likely as without
_STEPS = 50  # coverages that a threshold is chosen from


class Labeled(Protocol):
    """What calibration needs of a task."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    def head(self) -> Head | None: ...


def calibrate(
    task: Labeled, record: CalibrationRecord, predictions: Sequence[Prediction]
) -> list[Prediction]:
    """The predictions with calibrated probabilities, their confidence, and whether they are
    abstained from. Texts as they are.

    Labels are decided before, by the task and the model's own probabilities; calibration moves
    confidences and no label."""
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


def is_multi_label(task: Labeled) -> bool:
    head = task.head()
    return head is not None and head.multi_label


def matrix(predictions: Sequence[Prediction]) -> Floats:
    return np.array([row.probabilities for row in predictions], dtype=np.float64)


@dataclass(frozen=True)
class CalibratedPredictions:
    """One answer per row."""

    probabilities: Floats
    confidence: Floats
    abstained: Bools


def apply(
    record: CalibrationRecord, probabilities: Floats, predictions: Bools, *, multi_label: bool
) -> CalibratedPredictions:
    """What a release answers: which labels is decided before, by the model's own probabilities."""
    scaled = rescale(probabilities, record.temperature, multi_label=multi_label)
    sure = confidence(scaled, predictions, multi_label=multi_label)
    rule = record.abstention
    if rule is None:
        return CalibratedPredictions(scaled, sure, np.zeros(len(sure), dtype=np.bool_))
    return CalibratedPredictions(
        scaled,
        sure,
        np.ones(len(sure), dtype=np.bool_) if rule.threshold is None else sure < rule.threshold,
    )


def confidence(probabilities: Floats, predictions: Bools, *, multi_label: bool) -> Floats:
    """The probability of the label; multi-label: of the least certain of the row's yes and no
    answers."""
    if multi_label:
        least: Floats = np.where(predictions, probabilities, 1 - probabilities).min(axis=1)
        return least
    chosen: Floats = np.where(predictions, probabilities, 0.0).sum(axis=1)
    return chosen


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
    """`precision` is what answers shall have, or None; `level` how sure the threshold is to keep to
    it."""
    temperature = fit_temperature(probabilities, truth, multi_label=multi_label) if scale else 1.0
    record = CalibrationRecord(temperature=temperature, num_rows=len(truth))
    if precision is None:
        return record
    sure = apply(record, probabilities, predictions, multi_label=multi_label).confidence
    rule = fit_abstention(sure, (truth == predictions).all(axis=1), precision, level)
    return record.model_copy(update={"abstention": rule})


def fit_temperature(probabilities: Floats, truth: Bools, *, multi_label: bool) -> float:
    """The temperature that makes these rows most likely; 1 where that says little more than chance
    explains."""
    from scipy.optimize import minimize_scalar

    yes, no = _log(probabilities), _log(1 - probabilities)
    own = (
        probabilities
        if multi_label
        else np.exp(yes - np.logaddexp.reduce(yes, axis=1, keepdims=True))
    )  # sums of 1
    wanted = mix(truth, own)

    def loss(log_inverse: float) -> float:
        # Linear in the inverse but for a log-sum-exp: convex, one minimum.
        inverse = np.exp(log_inverse)
        if multi_label:
            return float(
                (
                    np.logaddexp(yes * inverse, no * inverse)
                    - inverse * (wanted * yes + (1 - wanted) * no)
                ).mean()
            )
        return float(
            (
                np.logaddexp.reduce(yes * inverse, axis=1) - inverse * (wanted * yes).sum(axis=1)
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


def fit_abstention(sure: Floats, right: Bools, precision: float, level: float) -> AbstentionRecord:
    """The lowest threshold above which a share of at least `precision` is right, as surely as
    `level` says.

    Thresholds are tested from sure to unsure, each by an exact bound, until one fails: so the error
    of many tests is that of one. Testing begins where the confidences alone, which know no label,
    expect a test to pass most likely."""
    from scipy.stats import poisson

    order = np.argsort(-sure, kind="stable")
    ranked, hits, feared = sure[order], np.cumsum(right[order]), np.cumsum(1 - sure[order])
    ends = np.append(
        np.flatnonzero(np.diff(ranked)), len(ranked) - 1
    )  # last row of each run of equal confidences
    steps = np.unique(np.searchsorted(ends + 1, len(ranked) * np.arange(1, _STEPS + 1) / _STEPS))
    counts = ends[steps[steps < len(ends)]] + 1
    allowed = _allowed_errors(counts.tolist(), precision, level)
    likely = poisson.cdf(
        allowed, feared[counts - 1]
    )  # 0 where not even no error is allowed, which is -1
    kept = 0
    for place in range(int(np.argmax(likely)), len(counts)):
        if counts[place] - hits[counts[place] - 1] > allowed[place]:
            break
        kept = int(counts[place])
    if not kept:
        return AbstentionRecord(precision=precision, level=level, threshold=None, coverage=0.0)
    # Half way to the next row: a threshold on a confidence itself would flip that row at the last
    # bit of another device.
    below = ranked[kept] if kept < len(ranked) else 0.0
    return AbstentionRecord(
        precision=precision,
        level=level,
        threshold=float((ranked[kept - 1] + below) / 2),
        coverage=kept / len(ranked),
    )


def _allowed_errors(counts: Sequence[int], precision: float, level: float) -> list[int]:
    """Of so many answers, how many may be wrong; -1 where even none proves nothing. More answers
    allow no fewer."""
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


PRIOR_ROWS = 50  # docs/lab-notes.md: what they gain and lose


def mix(truth: npt.ArrayLike, probabilities: Floats) -> Floats:
    """Truth as if `PRIOR_ROWS` more rows had been seen, whose labels are as the model's
    probabilities have them."""
    num_rows = len(probabilities)
    mixed: Floats = (
        num_rows * np.asarray(truth, dtype=np.float64) + PRIOR_ROWS * probabilities
    ) / (num_rows + PRIOR_ROWS)
    return mixed


_FOLDS = 5
_SWEEPS = 3
_CANDIDATES = 40
_SMALLEST = 1e-12


def decide(probabilities: Floats, thresholds: Floats) -> Ints:
    """The place of each row's class; thresholds add up to 1, and equal ones mean the most probable
    class."""
    chosen: Ints = (probabilities / thresholds).argmax(axis=1)
    return chosen


def fit_thresholds(truth: Ints, probabilities: Floats) -> tuple[float, ...] | None:
    """None where the rows cannot tell that those left out of a fit gain by it: then it is the most
    probable class."""
    num_labels = probabilities.shape[1]
    own = probabilities.argmax(axis=1)
    crossed = own.copy()
    order = np.lexsort((np.arange(len(truth)), truth))
    folds = np.empty(len(truth), dtype=np.int64)
    folds[order] = np.arange(len(truth)) % _FOLDS  # each class dealt evenly
    for fold in range(_FOLDS):
        left_out = folds == fold
        if left_out.any() and not left_out.all():
            crossed[left_out] = decide(
                probabilities[left_out],
                search_thresholds(truth[~left_out], probabilities[~left_out]),
            )
    one_hot = np.eye(num_labels, dtype=np.bool_)
    gain = compare(
        LabelResults(one_hot[truth], one_hot[crossed]),
        LabelResults(one_hot[truth], one_hot[own]),
        "f1_macro",
        num_resamples=500,
    )
    if gain.low <= 0:
        return None
    return tuple(search_thresholds(truth, probabilities).tolist())


def search_thresholds(truth: Ints, probabilities: Floats) -> Floats:
    """One class after another, each to the best of its candidates, a few times round."""
    num_labels = probabilities.shape[1]
    scores, wanted = (
        np.log(np.maximum(probabilities, _SMALLEST)),
        mix(np.eye(num_labels)[truth], probabilities),
    )
    limits = np.zeros(num_labels)
    best = _f1_macro(wanted, scores.argmax(axis=1))
    for _ in range(_SWEEPS):
        before = best
        for label in range(num_labels):
            shifted = scores - limits
            shifted[:, label] = -np.inf
            margin = scores[:, label] - shifted.max(
                axis=1
            )  # the row is given this class where its limit is at most this
            other = shifted.argmax(axis=1)
            for limit in _candidates(margin, limits[label]):
                value = _f1_macro(wanted, np.where(margin >= limit, label, other))
                if value > best + 1e-9:
                    best, limits[label] = value, limit
        if best == before:
            break
    thresholds: Floats = np.exp(limits - np.logaddexp.reduce(limits))
    return thresholds


def _candidates(margin: Floats, now: float) -> Floats:
    """Half way between neighbouring rows, the nearest to what it is first: of equally good ones the
    least change is taken."""
    ends = np.unique(margin)
    if len(ends) > _CANDIDATES:
        ends = np.quantile(ends, np.linspace(0, 1, _CANDIDATES)).astype(np.float64)
    middles = (ends[1:] + ends[:-1]) / 2
    ordered: Floats = middles[np.argsort(np.abs(middles - now), kind="stable")]
    return ordered


def _f1_macro(wanted: Floats, predictions: Ints) -> float:
    """`wanted` says how likely each class of a row is."""
    num_labels = wanted.shape[1]
    hits = np.bincount(
        predictions, weights=wanted[np.arange(len(predictions)), predictions], minlength=num_labels
    )
    counts = Counts(hits, wanted.sum(axis=0), np.bincount(predictions, minlength=num_labels))
    return float(counts.average("f1_macro"))
