"""A finalist that was trained with several seeds: its figures are means over them, and both seeds
and rows are drawn for how sure they are. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medray.evaluation import bootstrap
from medray.evaluation.bootstrap import Comparison, Interval, Results, value
from medray.types import Floats


@dataclass(frozen=True)
class Seeds:
    """One finalist's trials that differ in their seed alone; the ranked figure of each, in one
    order."""

    trials: tuple[str, ...]
    validation: tuple[float, ...]
    test: tuple[float, ...]
    published: str  # the trial with the best validation figure

    @property
    def num_seeds(self) -> int:
        return len(self.trials)


def interval(
    seeds: Sequence[Results], metric: str, *, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Of the mean figure, for rows like these and seeds like these."""
    if len(seeds) == 1:
        return bootstrap.interval(seeds[0], metric, num_resamples=num_resamples, seed=seed)
    drawn = next(_resampled([seeds], metric, num_resamples, seed))
    return bootstrap.bounds(drawn, 0.95, bootstrap.num_rows(seeds[0]))


def compare(
    first: Sequence[Results],
    second: Sequence[Results],
    metric: str,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Two means on the same rows, drawn together; the seeds of each are drawn apart."""
    if len(first) == len(second) == 1:
        return bootstrap.compare(
            first[0], second[0], metric, num_resamples=num_resamples, seed=seed
        )
    bootstrap.check_same_rows([*first, *second])
    one, two = _resampled([first, second], metric, num_resamples, seed)
    return bootstrap.comparison(_mean(first, metric) - _mean(second, metric), one - two)


def mean(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure over the seeds."""
    return {name: float(np.mean([values[name] for values in figures])) for name in figures[0]}


def _mean(seeds: Sequence[Results], metric: str) -> float:
    return float(np.mean([value(results, metric) for results in seeds]))


def _resampled(
    groups: Sequence[Sequence[Results]], metric: str, num_resamples: int, seed: int
) -> Iterator[Floats]:
    """For each group of seeds the mean figure of each resample."""
    rng = np.random.default_rng(seed)
    flat = [results for group in groups for results in group]
    figures = iter(bootstrap.resampled(flat, metric, num_resamples, seed))
    for group in groups:
        by_seed = np.stack([next(figures) for _ in group], axis=1)  # a row a resample
        drawn = rng.integers(len(group), size=(num_resamples, len(group)))
        yield np.take_along_axis(by_seed, drawn, axis=1).mean(axis=1)
