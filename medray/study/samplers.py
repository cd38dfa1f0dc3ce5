"""Samplers propose the next settings of one base model. They know axes and scores; none knows Ray.

Draws have numbers from 0. A random or grid draw depends on the study's seed, the base model and its
number alone. So a resumed study draws the same settings as an uninterrupted one."""

import hashlib
import itertools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from medray.config.search import Axis
from medray.config.study import LEARNING_RATE
from medray.study.rates import rate_of

_REDRAWS = 50  # attempts at a new configuration; then the space counts as exhausted


class Sampler(Protocol):
    @property
    def num_trials(self) -> int:
        """The number of draws. There are fewer where the space has fewer points."""
        ...

    def draw(self, number: int) -> dict[str, Any] | None:
        """Return the settings of a draw, or None where the space is exhausted."""
        ...

    def tell(self, settings: Mapping[str, Any], value: float | None) -> None:
        """Record the score of these settings, higher is better; None where the trial failed."""
        ...


def make(
    algorithm: str,
    space: Mapping[str, Axis],
    num_trials: int,
    *,
    seed: int,
    base_model: str,
    guess: Mapping[str, Any] = MappingProxyType({}),
) -> Sampler:
    """Return a sampler of a space. Its first draw takes the values of `guess`."""
    if not space:
        return GridAndRandom({}, 1, seed=seed, base_model=base_model)
    if algorithm == "optuna":
        return Optuna(space, num_trials, seed=seed, base_model=base_model, guess=guess)
    if algorithm == "grid":
        return GridAndRandom(
            {path: Axis(grid=axis.values) for path, axis in space.items()},
            1,
            seed=seed,
            base_model=base_model,
        )
    return GridAndRandom(space, num_trials, seed=seed, base_model=base_model, guess=guess)


class LearningRates:
    """Spaces learning rates evenly on a log scale, the best guess first."""

    def __init__(self, first: float, num_trials: int) -> None:
        self.first, self.num_trials = first, num_trials

    def draw(self, number: int) -> dict[str, Any] | None:
        return {LEARNING_RATE: rate_of(self.first, number)}

    def tell(self, settings: Mapping[str, Any], value: float | None) -> None:
        """Ignore the score: these draws do not depend on scores."""


class GridAndRandom:
    """Crosses the grid axes and draws the other axes `num_draws` times per point of the grid."""

    def __init__(
        self,
        space: Mapping[str, Axis],
        num_draws: int,
        *,
        seed: int,
        base_model: str,
        guess: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.space, self.seed, self.base_model = dict(space), seed, base_model
        self.guess = guess
        grid = {path: axis.values for path, axis in self.space.items() if axis.kind == "grid"}
        self.points = [
            dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
        ]
        self.num_trials = num_draws * len(self.points)
        self._draws: list[dict[str, Any] | None] = []

    def draw(self, number: int) -> dict[str, Any] | None:
        while len(self._draws) <= number:
            self._draws.append(self._new(len(self._draws)))
        return self._draws[number]

    def tell(self, settings: Mapping[str, Any], value: float | None) -> None:
        """Ignore the score: these draws do not depend on scores."""

    def _new(self, number: int) -> dict[str, Any] | None:
        point = self.points[number % len(self.points)]
        for attempt in range(_REDRAWS):
            rng = np.random.default_rng([_seed(self.seed, self.base_model), number, attempt])
            settings = {
                path: point[path] if path in point else _value(axis, rng)
                for path, axis in self.space.items()
            }
            if number == 0:
                settings |= self.guess
            if settings not in self._draws:
                return settings
        return None


class Optuna:
    """Optuna's TPE, through its ask-and-tell interface."""

    def __init__(
        self,
        space: Mapping[str, Axis],
        num_trials: int,
        *,
        seed: int,
        base_model: str,
        guess: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.num_trials = num_trials
        self.seed, self.base_model = seed, base_model
        self.study = optuna.create_study(direction="maximize")
        self.distributions = {path: _distribution(axis) for path, axis in space.items()}
        self.guess = dict(guess)
        self._open: list[tuple[dict[str, Any], Any]] = []

    def draw(self, number: int) -> dict[str, Any] | None:
        import optuna

        # The number is part of the seed: a resumed process would repeat the first draws otherwise.
        self.study.sampler = optuna.samplers.TPESampler(
            seed=_seed(self.seed, f"{self.base_model}:{number}") % 2**32,
            n_startup_trials=max(3, min(10, self.num_trials // 3)),
        )
        if number == 0 and self.guess:
            self.study.enqueue_trial(self.guess)
        trial = self.study.ask(self.distributions)
        settings = dict(trial.params)
        self._open.append((settings, trial))
        return settings

    def tell(self, settings: Mapping[str, Any], value: float | None) -> None:
        import optuna

        for place, (proposal, trial) in enumerate(self._open):
            if proposal == settings:
                del self._open[place]
                self.study.tell(
                    trial, value, state=None if value is not None else optuna.trial.TrialState.FAIL
                )
                return
        if value is not None:  # drawn by an earlier process
            self.study.add_trial(
                optuna.trial.create_trial(
                    params=dict(settings), distributions=self.distributions, value=value
                )
            )


def _distribution(axis: Axis) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match axis.kind:
        case "choice":
            return CategoricalDistribution(axis.values)
        case "randint":
            return IntDistribution(*axis.values)
        case kind:
            low, high = axis.values
            return FloatDistribution(low, high, log=kind == "loguniform")


def _value(axis: Axis, rng: np.random.Generator) -> Any:
    match axis.kind:
        case "choice":
            return axis.values[int(rng.integers(len(axis.values)))]
        case "randint":
            return int(rng.integers(axis.values[0], axis.values[1], endpoint=True))
        case "uniform":
            return float(rng.uniform(*axis.values))
    low, high = axis.values[:2]
    value = math.exp(rng.uniform(math.log(low), math.log(high)))
    if axis.kind == "loguniform":
        return value
    step = axis.values[2]
    whole = low + round((value - low) / step) * step
    return float(f"{min(whole, high):.12g}")  # drop the rounding error of the sum


def _seed(seed: int, base_model: str) -> int:
    digest = hashlib.blake2b(f"{seed}:{base_model}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
