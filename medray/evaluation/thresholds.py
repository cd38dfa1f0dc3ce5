"""Thresholds per class that raise macro F1. Pure numpy."""

import numpy as np

from medray.evaluation.bootstrap import LabelResults, compare
from medray.evaluation.calibration import mix
from medray.evaluation.metrics import Counts
from medray.types import Floats, Ints

_FOLDS = 5
_SWEEPS = 3
_CANDIDATES = 40
_SMALLEST = 1e-12


def decide(probabilities: Floats, thresholds: Floats) -> Ints:
    """Return the position of each row's class. Thresholds add up to 1; equal thresholds give the
    most probable class."""
    classes: Ints = (probabilities / thresholds).argmax(axis=1)
    return classes


def fit_thresholds(truth: Ints, probabilities: Floats) -> tuple[float, ...] | None:
    """Return thresholds per class, or None for the most probable class. None is returned unless
    cross-validation shows that the thresholds raise macro F1."""
    num_labels = probabilities.shape[1]
    own = probabilities.argmax(axis=1)
    classes = own.copy()
    order = np.lexsort((np.arange(len(truth)), truth))
    folds = np.empty(len(truth), dtype=np.int64)
    folds[order] = np.arange(len(truth)) % _FOLDS  # stratified by class
    for fold in range(_FOLDS):
        left_out = folds == fold
        if left_out.any() and not left_out.all():
            classes[left_out] = decide(
                probabilities[left_out],
                search_thresholds(truth[~left_out], probabilities[~left_out]),
            )
    one_hot = np.eye(num_labels, dtype=np.bool_)
    gain = compare(
        LabelResults(one_hot[truth], one_hot[classes]),
        LabelResults(one_hot[truth], one_hot[own]),
        "f1_macro",
        num_resamples=500,
    )
    if gain.low <= 0:
        return None
    return tuple(search_thresholds(truth, probabilities).tolist())


def search_thresholds(truth: Ints, probabilities: Floats) -> Floats:
    """Search by coordinate ascent: each class in turn takes the best of its candidates."""
    num_labels = probabilities.shape[1]
    scores = np.log(np.maximum(probabilities, _SMALLEST))
    targets = mix(np.eye(num_labels)[truth], probabilities)
    limits = np.zeros(num_labels)
    best = _f1_macro(targets, scores.argmax(axis=1))
    for _ in range(_SWEEPS):
        before = best
        for label in range(num_labels):
            others = scores - limits
            others[:, label] = -np.inf
            # A row gets this class if the limit of the class is at most the row's margin.
            margin = scores[:, label] - others.max(axis=1)
            other = others.argmax(axis=1)
            for limit in _candidates(margin, limits[label]):
                value = _f1_macro(targets, np.where(margin >= limit, label, other))
                if value > best + 1e-9:
                    best, limits[label] = value, limit
        if best == before:
            break
    thresholds: Floats = np.exp(limits - np.logaddexp.reduce(limits))
    return thresholds


def _candidates(margin: Floats, now: float) -> Floats:
    """Return the limits half way between neighboring rows, the nearest to the present limit first,
    so that the smallest of equally good changes wins."""
    ends = np.unique(margin)
    if len(ends) > _CANDIDATES:
        ends = np.quantile(ends, np.linspace(0, 1, _CANDIDATES)).astype(np.float64)
    middles = (ends[1:] + ends[:-1]) / 2
    candidates: Floats = middles[np.argsort(np.abs(middles - now), kind="stable")]
    return candidates


def _f1_macro(targets: Floats, predictions: Ints) -> float:
    """Return the macro F1 against `targets`, the probability of each class of each row."""
    num_labels = targets.shape[1]
    hits = np.bincount(
        predictions, weights=targets[np.arange(len(predictions)), predictions], minlength=num_labels
    )
    counts = Counts(hits, targets.sum(axis=0), np.bincount(predictions, minlength=num_labels))
    return float(counts.average("f1_macro"))
