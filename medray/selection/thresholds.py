"""Class-wise thresholds of rows that have one label: the answer is the class whose probability is most above its threshold.

Fitted for macro F1 on validation rows and what the model itself says of them, and kept only where rows that were left out of the fit gain by it.
"""

import numpy as np
import numpy.typing as npt

from medray.selection.prior import mix
from medray.selection.statistics import LabelAnswers, compare

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_FOLDS = 5
_SWEEPS = 3
_CANDIDATES = 40
_SMALLEST = 1e-12


def decide(probabilities: Floats, thresholds: Floats) -> Ints:
    """The place of each row's class; thresholds add up to 1, and equal ones mean the most probable class."""
    chosen: Ints = (probabilities / thresholds).argmax(axis=1)
    return chosen


def fit_thresholds(truth: Ints, probabilities: Floats) -> tuple[float, ...] | None:
    """None where the rows cannot tell that those left out of a fit gain by it: then it is the most probable class."""
    num_labels = probabilities.shape[1]
    own = probabilities.argmax(axis=1)
    crossed = own.copy()
    order = np.lexsort((np.arange(len(truth)), truth))
    folds = np.empty(len(truth), dtype=np.int64)
    folds[order] = np.arange(len(truth)) % _FOLDS  # each class dealt evenly
    for fold in range(_FOLDS):
        left_out = folds == fold
        if left_out.any() and not left_out.all():
            crossed[left_out] = decide(probabilities[left_out], _search(truth[~left_out], probabilities[~left_out]))
    one_hot = np.eye(num_labels, dtype=np.bool_)
    gain = compare(
        LabelAnswers(one_hot[truth], one_hot[crossed]), LabelAnswers(one_hot[truth], one_hot[own]), "f1_macro", num_resamples=500
    )
    if gain.low <= 0:
        return None
    return tuple(_search(truth, probabilities).tolist())


def _search(truth: Ints, probabilities: Floats) -> Floats:
    """One class after another, each to the best of its candidates, a few times round."""
    num_labels = probabilities.shape[1]
    scores, wanted = np.log(np.maximum(probabilities, _SMALLEST)), mix(np.eye(num_labels)[truth], probabilities)
    limits = np.zeros(num_labels)
    best = _f1_macro(wanted, scores.argmax(axis=1))
    for _ in range(_SWEEPS):
        before = best
        for label in range(num_labels):
            shifted = scores - limits
            shifted[:, label] = -np.inf
            margin = scores[:, label] - shifted.max(axis=1)  # the row is given this class where its limit is at most this
            other = shifted.argmax(axis=1)
            for limit in _candidates(margin, limits[label]):
                found = _f1_macro(wanted, np.where(margin >= limit, label, other))
                if found > best + 1e-9:
                    best, limits[label] = found, limit
        if best == before:
            break
    thresholds: Floats = np.exp(limits - np.logaddexp.reduce(limits))
    return thresholds


def _candidates(margin: Floats, now: float) -> Floats:
    """Half way between neighbouring rows, the nearest to what it is first: of equally good ones the least change is taken."""
    ends = np.unique(margin)
    if len(ends) > _CANDIDATES:
        ends = np.quantile(ends, np.linspace(0, 1, _CANDIDATES)).astype(np.float64)
    middles = (ends[1:] + ends[:-1]) / 2
    ordered: Floats = middles[np.argsort(np.abs(middles - now), kind="stable")]
    return ordered


def _f1_macro(wanted: Floats, predicted: Ints) -> float:
    """`wanted` says how likely each class of a row is."""
    num_labels = wanted.shape[1]
    hits = np.bincount(predicted, weights=wanted[np.arange(len(predicted)), predicted], minlength=num_labels)
    either = wanted.sum(axis=0) + np.bincount(predicted, minlength=num_labels)
    return float((2 * hits[either > 0] / either[either > 0]).mean())
