"""When a search stops a trial: at rungs, where it is compared with others, and where it makes no
progress. It is pure."""

import math
from dataclasses import dataclass, field

from medray.config.trial import TrainConfig

_LEAST_STEPS = 50  # before a trial can be stopped: fewer say little about the rest
_LEAST_WARMUPS = 2  # times as long as the warm-up, in which high rates look like low ones
_SMALLEST_POWER = 3  # of the reduction factor: the first rung is at least 1/27 of an epoch


@dataclass
class Rungs:
    """Asynchronous successive halving: at each rung, a trial stops unless it is among the best so
    far."""

    grace_epochs: float
    reduction_factor: float
    values: dict[float, dict[str, float]] = field(default_factory=dict)  # by rung and trial

    def goes_on(self, trial: str, epochs: float, value: float) -> bool:
        rung = self._rung(epochs)
        if rung is None or trial in self.values.get(rung, {}):
            return True
        values = self.values.setdefault(rung, {})
        values[trial] = -math.inf if math.isnan(value) else value
        better = sum(other > values[trial] for other in values.values())
        return better < max(1, math.floor(len(values) / self.reduction_factor))

    def below(self, epochs: float) -> tuple[float, ...]:
        powers = range(max(0, math.ceil(self._steps(epochs) - 1e-9)))
        return tuple(self.grace_epochs * self.reduction_factor**power for power in powers)

    def _rung(self, epochs: float) -> float | None:
        """Return the highest rung at or below this many epochs."""
        if epochs < self.grace_epochs:
            return None
        return self.grace_epochs * self.reduction_factor ** math.floor(self._steps(epochs) + 1e-9)

    def _steps(self, epochs: float) -> float:
        """Return the number of rungs from the first one to these epochs."""
        return math.log(epochs / self.grace_epochs) / math.log(self.reduction_factor)


@dataclass
class Patience:
    """Stops a trial whose loss and figure were both as good before, for some evaluations in turn.
    A report that is repeated after a kill counts once.

    A loss alone stops too early: it rises with the confidence in mistakes while F1 still grows."""

    num_allowed: int
    best: dict[str, tuple[float, float]] = field(default_factory=dict)  # by trial, higher is better
    num_worse: dict[str, int] = field(default_factory=dict)
    epochs: dict[str, float] = field(default_factory=dict)  # of the last report that counted

    def goes_on(self, trial: str, epochs: float, loss: float, value: float) -> bool:
        if epochs <= self.epochs.get(trial, 0.0):
            return self.num_worse[trial] < self.num_allowed
        self.epochs[trial] = epochs
        best_loss, best_value = self.best.get(trial, (math.inf, -math.inf))
        is_better = loss < best_loss or value > best_value
        self.best[trial] = min(loss, best_loss), max(value, best_value)
        self.num_worse[trial] = 0 if is_better else self.num_worse.get(trial, 0) + 1
        return self.num_worse[trial] < self.num_allowed


def first_rung(train: TrainConfig, steps_per_epoch: int, *, reduction_factor: float) -> float:
    """Return the epochs before a trial can be stopped: a part of one for many rows, else whole
    epochs."""
    if not steps_per_epoch:
        return 1.0
    num_steps = train.max_steps or steps_per_epoch * (train.epochs or 1)
    warmup = train.warmup_steps or (train.warmup_ratio or 0.0) * num_steps
    least = max(_LEAST_STEPS, _LEAST_WARMUPS * warmup)
    for power in range(_SMALLEST_POWER, 0, -1):
        if steps_per_epoch >= least * reduction_factor**power:
            return float(reduction_factor**-power)
    return float(math.ceil(least / steps_per_epoch))
