"""Which settings come next for one base model. Each sampler knows axes and figures; none knows Ray.

Draws are numbered from 0. Random and grid draws depend on the study's seed, the base model and
their number alone, so that a study that goes on after a stop draws what it would have drawn."""

import hashlib
import itertools
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from medray.config.search import Axis

_REDRAWS = 50  # of a configuration that was drawn before; a small space is exhausted after that


class Sampler(Protocol):
    @property
    def num_trials(self) -> int:
        """How many draws there are to be; there may be fewer where the space has fewer points."""
        ...

    def draw(self, number: int) -> dict[str, Any] | None:
        """The settings of a draw, None where the space has no more."""
        ...

    def tell(self, settings: Mapping[str, Any], value: float | None) -> None:
        """The figure that these settings reached, higher is better; None where the trial failed."""
        ...


def make(
    algorithm: str, space: Mapping[str, Axis], num_trials: int, *, seed: int, base_model: str
) -> Sampler:
    if not space:
        return Drawn({}, 1, seed=seed, base_model=base_model)
    if algorithm == "optuna":
        return Optuna(space, num_trials, seed=seed, base_model=base_model)
    if algorithm == "grid":
        return Drawn(
            {path: Axis(grid=axis.values) for path, axis in space.items()},
            1,
            seed=seed,
            base_model=base_model,
        )
    return Drawn(space, num_trials, seed=seed, base_model=base_model)


class Drawn:
    """Grid axes crossed, the other axes drawn `num_draws` times for each point of the grid."""

    def __init__(
        self, space: Mapping[str, Axis], num_draws: int, *, seed: int, base_model: str
    ) -> None:
        self.space, self.seed, self.base_model = dict(space), seed, base_model
        grid = {path: axis.values for path, axis in self.space.items() if axis.kind == "grid"}
        self.points = [
            dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
        ]
        self.num_trials = num_draws * len(self.points)
        self._drawn: list[dict[str, Any] | None] = []

    def draw(self, number: int) -> dict[str, Any] | None:
        while len(self._drawn) <= number:
            self._drawn.append(self._new(len(self._drawn)))
        return self._drawn[number]

    def tell(self, settings: Mapping[str, Any], value: float | None) -> None:
        """Draws do not depend on figures."""

    def _new(self, number: int) -> dict[str, Any] | None:
        point = self.points[number % len(self.points)]
        for attempt in range(_REDRAWS):
            rng = np.random.default_rng([_seed(self.seed, self.base_model), number, attempt])
            settings = {
                path: point[path] if path in point else _value(axis, rng)
                for path, axis in self.space.items()
            }
            if settings not in self._drawn:
                return settings
        return None


class Optuna:
    """Optuna's TPE, by its ask-and-tell interface."""

    def __init__(
        self, space: Mapping[str, Axis], num_trials: int, *, seed: int, base_model: str
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.num_trials = num_trials
        self.seed, self.base_model = seed, base_model
        self.study = optuna.create_study(direction="maximize")
        self.distributions = {path: _distribution(axis) for path, axis in space.items()}
        self._open: list[tuple[dict[str, Any], Any]] = []

    def draw(self, number: int) -> dict[str, Any] | None:
        import optuna

        # Seeded by its number: a process that goes on would draw the first ones again.
        self.study.sampler = optuna.samplers.TPESampler(
            seed=_seed(self.seed, f"{self.base_model}:{number}") % 2**32,
            n_startup_trials=max(3, min(10, self.num_trials // 3)),
        )
        trial = self.study.ask(self.distributions)
        settings = dict(trial.params)
        self._open.append((settings, trial))
        return settings

    def tell(self, settings: Mapping[str, Any], value: float | None) -> None:
        import optuna

        for place, (drawn, trial) in enumerate(self._open):
            if drawn == settings:
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
    return float(f"{min(whole, high):.12g}")  # without the last bits of the sum


def _seed(seed: int, base_model: str) -> int:
    digest = hashlib.blake2b(f"{seed}:{base_model}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
