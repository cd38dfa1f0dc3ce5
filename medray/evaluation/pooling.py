"""Metrics of a finalist that was trained with several seeds: means over the seeds, with intervals
from a bootstrap over seeds and rows. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medray.evaluation import bootstrap
from medray.evaluation.bootstrap import Comparison, Interval, Results, value
from medray.types import Floats


@dataclass(frozen=True)
class Seeds:
    """The trials of one finalist that differ only in their seed, each with the metric that ranks
    it. All tuples have the same order."""

    trials: tuple[str, ...]
    validation: tuple[float, ...]
    test: tuple[float, ...]
    published: str  # the trial with the best validation metric

    @property
    def num_seeds(self) -> int:
        return len(self.trials)


def interval(
    seeds: Sequence[Results], metric: str, *, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the interval of the mean metric, which covers the variation of rows and of seeds."""
    if len(seeds) == 1:
        return bootstrap.interval(seeds[0], metric, num_resamples=num_resamples, seed=seed)
    means = next(_resample_means([seeds], metric, num_resamples, seed))
    return bootstrap.bounds(means, 0.95, bootstrap.num_rows(seeds[0]))


def compare(
    first: Sequence[Results],
    second: Sequence[Results],
    metric: str,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare two means on the same resamples of rows; the seeds of each are resampled apart."""
    if len(first) == len(second) == 1:
        return bootstrap.compare(
            first[0], second[0], metric, num_resamples=num_resamples, seed=seed
        )
    bootstrap.check_same_rows([*first, *second])
    one, two = _resample_means([first, second], metric, num_resamples, seed)
    return bootstrap.comparison(_mean(first, metric) - _mean(second, metric), one - two)


def mean(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over the seeds."""
    return {name: float(np.mean([values[name] for values in figures])) for name in figures[0]}


def _mean(seeds: Sequence[Results], metric: str) -> float:
    return float(np.mean([value(results, metric) for results in seeds]))


def _resample_means(
    groups: Sequence[Sequence[Results]], metric: str, num_resamples: int, seed: int
) -> Iterator[Floats]:
    """Yield, for each group of seeds, the mean metric of each resample."""
    rng = np.random.default_rng(seed)
    flat = [results for group in groups for results in group]
    figures = iter(bootstrap.resample(flat, metric, num_resamples, seed))
    for group in groups:
        by_seed = np.stack([next(figures) for _ in group], axis=1)  # one row per resample
        places = rng.integers(len(group), size=(num_resamples, len(group)))
        yield np.take_along_axis(by_seed, places, axis=1).mean(axis=1)
