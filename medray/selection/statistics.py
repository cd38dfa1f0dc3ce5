"""How sure a figure is: bootstrap intervals over rows, and paired comparisons of two predictions of the same rows.

Rows are drawn with weights, so that a thousand resamples are a few matrix products instead of a thousand scorings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medray.errors import ConfigError, allowed

Floats = npt.NDArray[np.float64]
_CHUNK = 250  # resamples at once: 250 x 100,000 rows are 200 MB
METRICS = ("accuracy", "accuracy_subset", "f1_macro", "f1_micro", "f1_weighted", "f1_binary")


@dataclass(frozen=True)
class Answers:
    """Truth and prediction of the same rows, a column a label, 0 or 1."""

    truth: npt.NDArray[np.bool_]
    predicted: npt.NDArray[np.bool_]
    positive: int | None = None  # column of the positive label
    units: npt.NDArray[np.int64] | None = None  # lines of one number are one row, answered by several models: drawn together

    @property
    def num_rows(self) -> int:
        return len(self.truth) if self.units is None else int(self.units.max()) + 1


@dataclass(frozen=True)
class Interval:
    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True)
class Comparison:
    """First minus second on the same rows."""

    difference: float
    low: float
    high: float
    p_value: float  # two-sided, of the bootstrap

    @property
    def is_tie(self) -> bool:
        """The data cannot separate the two."""
        return self.low <= 0 <= self.high


def interval(answers: Answers, metric: str, *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0) -> Interval:
    drawn = resampled([answers], metric, num_resamples, seed)[0]
    counted = answers.truth[:, answers.positive] if metric == "f1_binary" and answers.positive is not None else answers.truth
    return bounds(drawn, level, answers.num_rows if counted is answers.truth else int(counted.sum()))


def class_intervals(answers: Answers, *, level: float = 0.95, num_resamples: int = 1000, seed: int = 0) -> list[Interval]:
    """Of the F1 of each label, over the same resamples."""
    drawn = np.concatenate([_class_f1(answers, weights) for weights in _weights(answers, num_resamples, seed)])
    support = answers.truth.sum(axis=0)
    return [bounds(drawn[:, column], level, int(support[column])) for column in range(answers.truth.shape[1])]


def share_interval(num_right: int, num: int, *, level: float = 0.95) -> Interval:
    """Of a share of `num` rows (Clopper-Pearson): it holds for any number of them."""
    tail = (1 - level) / 2
    return Interval(share_bound(num_right, num, level=1 - tail), 1 - share_bound(num - num_right, num, level=1 - tail), level)


def share_bound(num_right: int, num: int, *, level: float) -> float:
    """What the share of all rows is at least, as surely as `level` says."""
    from scipy.stats import beta

    return 0.0 if num_right == 0 else float(beta.ppf(1 - level, num_right, num - num_right + 1))


def compare(first: Answers, second: Answers, metric: str, *, num_resamples: int = 2000, seed: int = 0) -> Comparison:
    """Both are scored on the same resamples: what is hard for both cancels out."""
    check_same_rows([first, second])
    one, two = resampled([first, second], metric, num_resamples, seed)
    whole = np.ones((1, len(first.truth)))
    difference = float(values(first, metric, whole)[0] - values(second, metric, whole)[0])
    return comparison(difference, one - two)


def check_same_rows(predictions: Sequence[Answers]) -> None:
    if any(not np.array_equal(predictions[0].truth, answers.truth) for answers in predictions[1:]):
        raise ConfigError("a paired comparison needs two predictions of the same rows")


def comparison(difference: float, resampled_differences: Floats) -> Comparison:
    low, high = np.quantile(resampled_differences, [0.025, 0.975])
    tail = min(float((resampled_differences <= 0).mean()), float((resampled_differences >= 0).mean()))
    return Comparison(difference, float(low), float(high), min(1.0, 2 * max(tail, 1 / len(resampled_differences))))


def values(answers: Answers, metric: str, weights: Floats) -> Floats:
    """The metric for each row of weights: how often each example counts."""
    if metric not in METRICS:
        raise ConfigError(f"intervals are known for other figures than {metric!r}; {allowed(metric, METRICS)}")
    if metric in ("accuracy", "accuracy_subset"):
        correct = (answers.truth == answers.predicted).all(axis=1)
        share: Floats = weights @ correct.astype(np.float64) / weights.sum(axis=1)
        return share
    if metric == "f1_binary":
        if answers.positive is None:
            raise ConfigError("f1_binary needs the positive label")
        return _class_f1(answers, weights)[:, answers.positive]
    both = weights @ (answers.truth & answers.predicted).astype(np.float64)
    true = weights @ answers.truth.astype(np.float64)
    said = weights @ answers.predicted.astype(np.float64)
    if metric == "f1_micro":
        return _ratio(2 * both.sum(axis=1), (true + said).sum(axis=1))
    f1 = _ratio(2 * both, true + said)
    if metric == "f1_weighted":
        return _ratio((f1 * true).sum(axis=1), true.sum(axis=1))
    occurs = (true + said) > 0  # as the metrics have it: macro over the labels that occur
    return _ratio((f1 * occurs).sum(axis=1), occurs.sum(axis=1).astype(np.float64))


def resampled(predictions: Sequence[Answers], metric: str, num_resamples: int, seed: int) -> list[Floats]:
    """The metric of each prediction on the same resamples of the rows."""
    found: list[list[Floats]] = [[] for _ in predictions]
    for weights in _weights(predictions[0], num_resamples, seed):
        for answers, drawn in zip(predictions, found, strict=True):
            drawn.append(values(answers, metric, weights))
    return [np.concatenate(drawn) for drawn in found]


def _weights(answers: Answers, num_resamples: int, seed: int) -> Iterator[Floats]:
    """How often each line counts; those of one row count alike."""
    rng = np.random.default_rng(seed)
    num_rows, units = answers.num_rows, answers.units
    for start in range(0, num_resamples, _CHUNK):
        drawn = rng.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=min(_CHUNK, num_resamples - start)).astype(np.float64)
        yield drawn if units is None else drawn[:, units]


def _class_f1(answers: Answers, weights: Floats) -> Floats:
    both = weights @ (answers.truth & answers.predicted).astype(np.float64)
    return _ratio(2 * both, weights @ answers.truth.astype(np.float64) + weights @ answers.predicted.astype(np.float64))


def bounds(drawn: Floats, level: float, num_rows: int) -> Interval:
    """Quantiles of the resamples. Where no resample differs, nothing or everything was right, and that few rows can be by chance."""
    tail = (1 - level) / 2
    low, high = (float(bound) for bound in np.quantile(drawn, [tail, 1 - tail]))
    by_chance = tail ** (1 / num_rows) if num_rows else 0.0
    if low == high == 1.0:
        return Interval(by_chance, 1.0, level)
    if low == high == 0.0:
        return Interval(0.0, 1 - by_chance, level)
    return Interval(low, high, level)


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
