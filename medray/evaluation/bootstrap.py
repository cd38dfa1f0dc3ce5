"""The uncertainty of a metric: bootstrap intervals over rows, and paired comparisons of two models
on the same rows.

A resample is a vector of weights, one per row, so that a thousand resamples take a few matrix
products instead of a thousand scorings."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from medray.errors import ConfigError, suggest
from medray.evaluation.metrics import Counts
from medray.types import Floats

Units = npt.NDArray[np.int64]
_CHUNK = 250  # resamples per matrix product: 250 x 100,000 rows take 200 MB
METRICS = ("accuracy", "accuracy_subset", "f1_macro", "f1_micro", "f1_weighted", "f1_binary")


class Results(Protocol):
    """A model's results on rows whose truth is known. They give the metrics of any resample of
    these rows."""

    @property
    def num_lines(self) -> int: ...

    @property
    def units(self) -> Units | None:
        """Map each line to its row. Lines of the same row hold the results of several models and
        are resampled together."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """List the metrics that `values` can compute."""
        ...

    def values(self, metric: str, weights: Floats) -> Floats:
        """Return the metric for each row of `weights`, which says how often each line counts."""
        ...

    def support(self, metric: str) -> int:
        """Return the number of rows that the metric describes."""
        ...

    def in_units(self, units: Units | None) -> Self: ...

    def same_rows(self, other: "Results") -> bool: ...


def num_rows(results: Results) -> int:
    return results.num_lines if results.units is None else int(results.units.max()) + 1


@dataclass(frozen=True)
class LabelResults:
    """Truth and predictions of the same rows, with one column per label."""

    truth: npt.NDArray[np.bool_]
    predictions: npt.NDArray[np.bool_]
    positive: int | None = None  # the column of the positive label
    units: Units | None = None
    metrics: ClassVar[tuple[str, ...]] = METRICS

    @property
    def num_lines(self) -> int:
        return len(self.truth)

    def values(self, metric: str, weights: Floats) -> Floats:
        if metric not in METRICS:
            raise ConfigError(
                f"metric {metric!r} has no bootstrap interval; {suggest(metric, METRICS)}"
            )
        if metric in ("accuracy", "accuracy_subset"):
            correct = (self.truth == self.predictions).all(axis=1)
            share: Floats = weights @ correct.astype(np.float64) / weights.sum(axis=1)
            return share
        counts = Counts.of(self.truth, self.predictions, weights)
        if metric != "f1_binary":
            return counts.average(metric)
        if self.positive is None:
            raise ConfigError("f1_binary needs the positive label")
        positive: Floats = counts.f1[:, self.positive]
        return positive

    def support(self, metric: str) -> int:
        if metric == "f1_binary" and self.positive is not None:
            return int(self.truth[:, self.positive].sum())
        return num_rows(self)

    def in_units(self, units: Units | None) -> Self:
        return replace(self, units=units)

    def same_rows(self, other: Results) -> bool:
        return isinstance(other, LabelResults) and np.array_equal(self.truth, other.truth)


Sums = Mapping[str, Floats]  # the sum of each count over the rows of each resample


@dataclass(frozen=True)
class Tallies:
    """The counts of each row, and the metrics that follow from weighted sums of these counts."""

    ids: tuple[str, ...]
    counts: Mapping[str, Floats]  # one value per row
    figures: Mapping[str, Callable[[Sums], Floats]]
    units: Units | None = None
    # The number of rows of each metric that describes only a part of the rows.
    supports: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_lines(self) -> int:
        return len(self.ids)

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(self.figures)

    def values(self, metric: str, weights: Floats) -> Floats:
        if metric not in self.figures:
            raise ConfigError(
                f"metric {metric!r} has no bootstrap interval; {suggest(metric, self.figures)}"
            )
        return self.figures[metric](
            {name: weights @ counts for name, counts in self.counts.items()}
        )

    def whole(self) -> dict[str, float]:
        """Return every metric of the rows, each counted once."""
        weights = np.ones((1, self.num_lines))
        return {name: float(self.values(name, weights)[0]) for name in self.figures}

    def support(self, metric: str) -> int:
        return self.supports.get(metric, num_rows(self))

    def in_units(self, units: Units | None) -> Self:
        return replace(self, units=units)

    def same_rows(self, other: Results) -> bool:
        return isinstance(other, Tallies) and self.ids == other.ids


@dataclass(frozen=True)
class Interval:
    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True)
class Comparison:
    """The metric of the first model minus that of the second, on the same rows."""

    difference: float
    low: float
    high: float
    p_value: float  # two-sided, by the bootstrap
    # The share of resamples with a difference below 0; older leaderboards do not have it.
    below: float | None = None

    @property
    def is_tie(self) -> bool:
        """Return whether the rows cannot separate the two models: the interval contains 0."""
        return self.low <= 0 <= self.high


def interval(
    results: Results, metric: str, *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    values = resample([results], metric, num_resamples, seed)[0]
    return bounds(values, level, results.support(metric))


def class_intervals(
    results: LabelResults, *, level: float = 0.95, num_resamples: int = 1000, seed: int = 0
) -> list[Interval]:
    """Return an interval of each label's F1, over the same resamples."""
    resamples = _weights(results, num_resamples, seed)
    values = np.concatenate(
        [Counts.of(results.truth, results.predictions, weights).f1 for weights in resamples]
    )
    support = results.truth.sum(axis=0)
    return [
        bounds(values[:, column], level, int(support[column]))
        for column in range(results.truth.shape[1])
    ]


def share_interval(num_right: int, num: int, *, level: float = 0.95) -> Interval:
    """Return the exact interval (Clopper-Pearson) of a share of `num` rows, valid for any
    number."""
    tail = (1 - level) / 2
    return Interval(
        share_bound(num_right, num, level=1 - tail),
        1 - share_bound(num - num_right, num, level=1 - tail),
        level,
    )


def share_bound(num_right: int, num: int, *, level: float) -> float:
    """Return a lower bound of the true share that holds with probability `level`."""
    from scipy.stats import beta

    return 0.0 if num_right == 0 else float(beta.ppf(1 - level, num_right, num - num_right + 1))


def compare(
    first: Results, second: Results, metric: str, *, num_resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Compare two models on the same resamples, so that rows that are hard for both cancel out."""
    check_same_rows([first, second])
    one, two = resample([first, second], metric, num_resamples, seed)
    return comparison(value(first, metric) - value(second, metric), one - two)


def value(results: Results, metric: str) -> float:
    return float(results.values(metric, np.ones((1, results.num_lines)))[0])


def check_same_rows(models: Sequence[Results]) -> None:
    if any(not models[0].same_rows(results) for results in models[1:]):
        raise ConfigError("a paired comparison needs two predictions of the same rows")


def comparison(difference: float, resampled_differences: Floats) -> Comparison:
    low, high = np.quantile(resampled_differences, [0.025, 0.975])
    tail = min(
        float((resampled_differences <= 0).mean()), float((resampled_differences >= 0).mean())
    )
    p_value = min(1.0, 2 * max(tail, 1 / len(resampled_differences)))
    return Comparison(
        difference, float(low), float(high), p_value, float((resampled_differences < 0).mean())
    )


def resample(models: Sequence[Results], metric: str, num_resamples: int, seed: int) -> list[Floats]:
    """Return the metric of each model on the same resamples of the rows."""
    chunks: list[list[Floats]] = [[] for _ in models]
    for weights in _weights(models[0], num_resamples, seed):
        for results, values in zip(models, chunks, strict=True):
            values.append(results.values(metric, weights))
    return [np.concatenate(values) for values in chunks]


def _weights(results: Results, num_resamples: int, seed: int) -> Iterator[Floats]:
    """Yield how often each line counts in each resample; lines of the same row count alike."""
    rng = np.random.default_rng(seed)
    num, units = num_rows(results), results.units
    for start in range(0, num_resamples, _CHUNK):
        weights = rng.multinomial(
            num, np.full(num, 1 / num), size=min(_CHUNK, num_resamples - start)
        ).astype(np.float64)
        yield weights if units is None else weights[:, units]


def bounds(values: Floats, level: float, num_rows: int) -> Interval:
    """Return the quantiles of the resamples. If all resamples are 0 or all are 1, the interval is
    widened to what so few rows can be by chance."""
    tail = (1 - level) / 2
    low, high = (float(bound) for bound in np.quantile(values, [tail, 1 - tail]))
    by_chance = tail ** (1 / num_rows) if num_rows else 0.0
    if low == high == 1.0:
        return Interval(by_chance, 1.0, level)
    if low == high == 0.0:
        return Interval(0.0, 1 - by_chance, level)
    return Interval(low, high, level)
