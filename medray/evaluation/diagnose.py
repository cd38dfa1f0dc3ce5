"""Analyzes a model's results on the rows of a split: reliability, slices, mistakes, suspects. Pure:
it takes probabilities and truth of any task."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medray.evaluation import bootstrap, calibration, metrics
from medray.evaluation.analysis import (
    Abstention,
    AnalysisSplit,
    ClassFigures,
    Estimate,
    Mistake,
    Reliability,
    SliceFigures,
    SplitAnalysis,
    Suspect,
    WorstSlice,
)
from medray.evaluation.bootstrap import (
    METRICS,
    Interval,
    LabelResults,
    class_intervals,
    interval,
    share_interval,
)
from medray.evaluation.reliability import bins_of, risk_coverage
from medray.evaluation.slices import LABEL
from medray.records import CalibrationRecord
from medray.types import Bools, Floats

ENOUGH_ROWS = 20  # a slice with fewer rows is not compared with others
_NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class SplitResults:
    """A model's results on the rows of a split, with its own, uncalibrated probabilities."""

    ids: Sequence[str]
    results: LabelResults
    probabilities: Floats
    columns: Mapping[str, Sequence[str]]  # each row's slice, by column


def examine(
    split: AnalysisSplit,
    data: SplitResults,
    record: CalibrationRecord,
    *,
    labels: Sequence[str],
    multi_label: bool,
    metric: str,
) -> SplitAnalysis:
    results = data.results
    calibrated = calibration.apply(
        record, data.probabilities, results.predictions, multi_label=multi_label
    )
    right = (results.truth == results.predictions).all(axis=1)
    f1 = metric if metric in METRICS and metric.startswith("f1_") else "f1_macro"
    classes = tuple(_classes(results, labels))
    slices = tuple(_slices(data, right, f1, classes))
    figure = _estimate(results, f1)
    return SplitAnalysis(
        split=split,
        num_rows=len(right),
        metric=f1,
        figure=figure,
        confusion=()
        if multi_label
        else tuple(map(tuple, metrics.confusion(results.truth, results.predictions))),
        per_class=classes,
        before=reliability(data.probabilities, results, multi_label=multi_label),
        after=reliability(calibrated.probabilities, results, multi_label=multi_label),
        risk_coverage=tuple(risk_coverage(calibrated.confidence, right)),
        abstention=_abstention(record, ~calibrated.abstained, right),
        slices=slices,
        worst=_worst(slices, data, f1, figure, labels),
        mistakes=mistakes(data.ids, results, calibrated.confidence, labels),
        suspects=suspects(
            data.ids, results.truth, calibrated.probabilities, labels, multi_label=multi_label
        ),
    )


def reliability(probabilities: Floats, results: LabelResults, *, multi_label: bool) -> Reliability:
    if multi_label:
        sure, right = probabilities.ravel(), results.truth.ravel()
    else:
        sure = calibration.confidence(probabilities, results.predictions, multi_label=False)
        right = (results.truth == results.predictions).all(axis=1)
    return bins_of(
        sure, right, metrics.log_loss(probabilities, results.truth, multi_label=multi_label)
    )


def _abstention(record: CalibrationRecord, is_answered: Bools, right: Bools) -> Abstention | None:
    rule = record.abstention
    if rule is None:
        return None
    num, hits = int(is_answered.sum()), int(right[is_answered].sum())
    precision = _from(hits / num, share_interval(hits, num)) if num else None
    return Abstention(rule.precision, rule.threshold, num, num / len(right), precision)


def _classes(results: LabelResults, labels: Sequence[str]) -> Iterator[ClassFigures]:
    intervals = class_intervals(results, num_resamples=_NUM_RESAMPLES)
    counts = metrics.Counts.of(results.truth, results.predictions)
    for column, label in enumerate(labels):
        hits, true, predictions = (
            int(number[column]) for number in (counts.hits, counts.true, counts.predictions)
        )
        yield ClassFigures(
            label=label,
            true_positives=hits,
            false_positives=predictions - hits,
            false_negatives=true - hits,
            true_negatives=len(results.truth) - true - predictions + hits,
            precision=float(counts.precision[column]),
            recall=float(counts.recall[column]),
            f1=_from(float(counts.f1[column]), intervals[column]),
        )


def _slices(
    data: SplitResults, right: Bools, metric: str, classes: Sequence[ClassFigures]
) -> Iterator[SliceFigures]:
    for column, names in data.columns.items():
        values = np.array(names, dtype=object)
        for value in sorted(set(names)):
            rows = values == value
            part = _part(data.results, rows)
            f1 = _estimate(part, metric) if _is_meant(part, metric) else None
            yield SliceFigures(column, value, int(rows.sum()), f1, float(right[rows].mean()))
    for column_number, figures in enumerate(classes):
        rows = data.results.truth[:, column_number]
        if rows.any():
            yield SliceFigures(
                LABEL, figures.label, int(rows.sum()), figures.f1, float(right[rows].mean())
            )


def _is_meant(part: LabelResults, metric: str) -> bool:
    """Return whether the metric describes the model on this slice. A macro F1 over one label, or
    the F1 of a label without rows, only describes the slice."""
    if metric == "f1_binary":
        return bool(part.truth[:, part.positive].any())
    num_present = int(part.truth.any(axis=0).sum())
    return num_present > (1 if metric == "f1_macro" else 0)


def _worst(
    slices: Sequence[SliceFigures],
    data: SplitResults,
    metric: str,
    figure: Estimate,
    labels: Sequence[str],
) -> WorstSlice | None:
    candidates = [part for part in slices if part.f1 and part.num_rows >= ENOUGH_ROWS]
    if len(candidates) < 2:
        return None
    worst = min(candidates, key=lambda part: part.f1.value if part.f1 else 1.0)
    level = 1 - 0.05 / len(candidates)
    if worst.column == LABEL:
        results = LabelResults(
            data.results.truth, data.results.predictions, labels.index(worst.value)
        )
        wide = interval(results, "f1_binary", level=level)
    else:
        rows = np.array(data.columns[worst.column], dtype=object) == worst.value
        wide = interval(_part(data.results, rows), metric, level=level)
    return WorstSlice(worst, len(candidates), wide.high < figure.value)


def _part(results: LabelResults, rows: Bools) -> LabelResults:
    return LabelResults(results.truth[rows], results.predictions[rows], results.positive)


def _estimate(results: LabelResults, metric: str) -> Estimate:
    return _from(
        bootstrap.value(results, metric), interval(results, metric, num_resamples=_NUM_RESAMPLES)
    )


def _from(figure: float, bounds: Interval) -> Estimate:
    return Estimate(figure, bounds.low, bounds.high)


def mistakes(
    ids: Sequence[str], results: LabelResults, confidence: Floats, labels: Sequence[str]
) -> tuple[Mistake, ...]:
    wrong = np.flatnonzero((results.truth != results.predictions).any(axis=1))
    rows = wrong[np.argsort(-confidence[wrong], kind="stable")]
    return tuple(
        Mistake(
            ids[row],
            _names(results.truth[row], labels),
            _names(results.predictions[row], labels),
            float(confidence[row]),
        )
        for row in rows
    )


def suspects(
    ids: Sequence[str],
    truth: Bools,
    probabilities: Floats,
    labels: Sequence[str],
    *,
    multi_label: bool,
) -> tuple[Suspect, ...]:
    """Find rows whose label may be wrong, by confident learning. Another label is as probable as
    on rows that have it, and the row's own label less probable than on its other rows.

    The rows must not have trained the model, since it would have learned their wrong labels.
    """
    # The mean probability of each label on the rows that have it.
    typical = _mean_where(truth, probabilities, otherwise=1.0)
    suggestions, doubts = (_by_label if multi_label else _by_row)(truth, probabilities, typical)
    doubtful = np.flatnonzero((suggestions != truth).any(axis=1))
    rows = doubtful[np.argsort(-doubts[doubtful], kind="stable")]
    return tuple(
        Suspect(
            ids[row],
            _names(truth[row], labels),
            _names(suggestions[row], labels),
            float(doubts[row]),
        )
        for row in rows
    )


def _by_row(truth: Bools, probabilities: Floats, typical: Floats) -> tuple[Bools, Floats]:
    rows = np.arange(len(truth))
    own, best = truth.argmax(axis=1), probabilities.argmax(axis=1)
    doubtful = (
        (best != own)
        & (probabilities[rows, best] >= typical[best])
        & (probabilities[rows, own] < typical[own])
    )
    suggestions = truth.copy()
    suggestions[doubtful] = np.eye(truth.shape[1], dtype=np.bool_)[best[doubtful]]
    return suggestions, probabilities[rows, best] - probabilities[rows, own]


def _by_label(truth: Bools, probabilities: Floats, typical: Floats) -> tuple[Bools, Floats]:
    # The mean probability of each label on the rows without it.
    absent = _mean_where(~truth, probabilities, otherwise=0.0)
    flips = np.where(
        truth,
        (probabilities <= absent) & (probabilities < 0.5),
        (probabilities >= typical) & (probabilities > 0.5),
    )
    doubts = np.where(flips, np.abs(2 * probabilities - 1), 0.0)
    return truth ^ flips, doubts.max(axis=1)


def _mean_where(mask: Bools, probabilities: Floats, *, otherwise: float) -> Floats:
    counts = mask.sum(axis=0)
    sums = np.where(mask, probabilities, 0.0).sum(axis=0)
    means: Floats = np.divide(sums, counts, out=np.full(len(counts), otherwise), where=counts > 0)
    return means


def _names(row: Bools, labels: Sequence[str]) -> tuple[str, ...]:
    return tuple(label for label, there in zip(labels, row, strict=True) if there)
