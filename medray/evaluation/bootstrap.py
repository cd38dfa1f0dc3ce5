"""How sure a figure is: bootstrap intervals over rows, and paired comparisons of two predictions of
the same rows.

Rows are drawn with weights, so that a thousand resamples are a few matrix products instead of a
thousand scorings."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from medray.errors import ConfigError, suggest
from medray.evaluation.metrics import Counts
from medray.types import Floats

Units = npt.NDArray[np.int64]
_CHUNK = 250  # resamples at once: 250 x 100,000 rows are 200 MB
METRICS = ("accuracy", "accuracy_subset", "f1_macro", "f1_micro", "f1_weighted", "f1_binary")


class Results(Protocol):
    """A model's results to rows whose truth is known, which give figures of any resample of these
    rows."""

    @property
    def num_lines(self) -> int: ...

    @property
    def units(self) -> Units | None:
        """Lines of one number are one row, with results of several models: they are drawn
        together."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """The figures that `values` knows."""
        ...

    def values(self, metric: str, weights: Floats) -> Floats:
        """The metric for each row of weights: how often each line counts."""
        ...

    def support(self, metric: str) -> int:
        """How many rows the metric is about."""
        ...

    def in_units(self, units: Units | None) -> Self: ...

    def same_rows(self, other: "Results") -> bool: ...


def num_rows(results: Results) -> int:
    return results.num_lines if results.units is None else int(results.units.max()) + 1


@dataclass(frozen=True)
class LabelResults:
    """Truth and prediction of the same rows, a column a label, 0 or 1."""

    truth: npt.NDArray[np.bool_]
    predictions: npt.NDArray[np.bool_]
    positive: int | None = None  # column of the positive label
    units: Units | None = None
    metrics: ClassVar[tuple[str, ...]] = METRICS

    @property
    def num_lines(self) -> int:
        return len(self.truth)

    def values(self, metric: str, weights: Floats) -> Floats:
        if metric not in METRICS:
            raise ConfigError(
                f"intervals are known for other figures than {metric!r}; {suggest(metric, METRICS)}"
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


Sums = Mapping[str, Floats]  # of each count, over the rows of each resample


@dataclass(frozen=True)
class Tallies:
    """What each row adds to some counts, and figures that follow from weighted sums of these."""

    ids: tuple[str, ...]
    counts: Mapping[str, Floats]  # of each row
    figures: Mapping[str, Callable[[Sums], Floats]]
    units: Units | None = None
    supports: Mapping[str, int] = field(
        default_factory=dict
    )  # of figures that are about a part of the rows

    @property
    def num_lines(self) -> int:
        return len(self.ids)

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(self.figures)

    def values(self, metric: str, weights: Floats) -> Floats:
        if metric not in self.figures:
            raise ConfigError(
                f"intervals are known for other figures than {metric!r}; "
                f"{suggest(metric, self.figures)}"
            )
        return self.figures[metric](
            {name: weights @ counts for name, counts in self.counts.items()}
        )

    def whole(self) -> dict[str, float]:
        """Every figure of the rows as they are."""
        once = np.ones((1, self.num_lines))
        return {name: float(self.values(name, once)[0]) for name in self.figures}

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
    """First minus second on the same rows."""

    difference: float
    low: float
    high: float
    p_value: float  # two-sided, of the bootstrap
    below: float | None = (
        # share of the resamples with a difference below 0; None in a leaderboard of an earlier
        # medray
        None
    )

    @property
    def is_tie(self) -> bool:
        """The data cannot separate the two."""
        return self.low <= 0 <= self.high


def interval(
    results: Results, metric: str, *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    drawn = resampled([results], metric, num_resamples, seed)[0]
    return bounds(drawn, level, results.support(metric))


def class_intervals(
    results: LabelResults, *, level: float = 0.95, num_resamples: int = 1000, seed: int = 0
) -> list[Interval]:
    """Of the F1 of each label, over the same resamples."""
    resamples = _weights(results, num_resamples, seed)
    drawn = np.concatenate(
        [Counts.of(results.truth, results.predictions, weights).f1 for weights in resamples]
    )
    support = results.truth.sum(axis=0)
    return [
        bounds(drawn[:, column], level, int(support[column]))
        for column in range(results.truth.shape[1])
    ]


def share_interval(num_right: int, num: int, *, level: float = 0.95) -> Interval:
    """Of a share of `num` rows (Clopper-Pearson): it holds for any number of them."""
    tail = (1 - level) / 2
    return Interval(
        share_bound(num_right, num, level=1 - tail),
        1 - share_bound(num - num_right, num, level=1 - tail),
        level,
    )


def share_bound(num_right: int, num: int, *, level: float) -> float:
    """What the share of all rows is at least, as surely as `level` says."""
    from scipy.stats import beta

    return 0.0 if num_right == 0 else float(beta.ppf(1 - level, num_right, num - num_right + 1))


def compare(
    first: Results, second: Results, metric: str, *, num_resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Both are scored on the same resamples: what is hard for both cancels out."""
    check_same_rows([first, second])
    one, two = resampled([first, second], metric, num_resamples, seed)
    return comparison(value(first, metric) - value(second, metric), one - two)


def value(results: Results, metric: str) -> float:
    return float(results.values(metric, np.ones((1, results.num_lines)))[0])


def check_same_rows(predictions: Sequence[Results]) -> None:
    if any(not predictions[0].same_rows(results) for results in predictions[1:]):
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


def resampled(
    predictions: Sequence[Results], metric: str, num_resamples: int, seed: int
) -> list[Floats]:
    """The metric of each prediction on the same resamples of the rows."""
    figures: list[list[Floats]] = [[] for _ in predictions]
    for weights in _weights(predictions[0], num_resamples, seed):
        for results, drawn in zip(predictions, figures, strict=True):
            drawn.append(results.values(metric, weights))
    return [np.concatenate(drawn) for drawn in figures]


def _weights(results: Results, num_resamples: int, seed: int) -> Iterator[Floats]:
    """How often each line counts; those of one row count alike."""
    rng = np.random.default_rng(seed)
    num, units = num_rows(results), results.units
    for start in range(0, num_resamples, _CHUNK):
        drawn = rng.multinomial(
            num, np.full(num, 1 / num), size=min(_CHUNK, num_resamples - start)
        ).astype(np.float64)
        yield drawn if units is None else drawn[:, units]


def bounds(drawn: Floats, level: float, num_rows: int) -> Interval:
    """Quantiles of the resamples. Where no resample differs, nothing or everything was right, and
    that few rows can be by chance."""
    tail = (1 - level) / 2
    low, high = (float(bound) for bound in np.quantile(drawn, [tail, 1 - tail]))
    by_chance = tail ** (1 / num_rows) if num_rows else 0.0
    if low == high == 1.0:
        return Interval(by_chance, 1.0, level)
    if low == high == 0.0:
        return Interval(0.0, 1 - by_chance, level)
    return Interval(low, high, level)
