"""The search of a study: the next trial, its base model, and early stops. It is pure: no Ray, no
disk, no model.

Each base model has its own sampler and rungs, so trials compare within a base model. All base
models share one budget."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from medray.config.search import SearchConfig
from medray.config.study import BaseModelConfig, StudyConfig
from medray.evaluation.metrics import higher_is_better
from medray.records import TrialRecord
from medray.study import samplers
from medray.study.samplers import Sampler


@dataclass(frozen=True)
class Proposal:
    """A trial to run: settings of one base model."""

    base: int  # position in the study's base_models
    number: int  # of this base model's trials, from 0
    settings: dict[str, Any]
    of: str | None = None  # the finalist that it repeats
    seed: int = 0  # added to the study's seed
    fold: int = 0  # the fold that it is evaluated on, with pooled folds

    @property
    def name(self) -> str | None:
        """The name of a repeated finalist, from its finalist's name."""
        if self.of is None:
            return None
        return f"{self.of}-seed-{self.seed}" if self.seed else f"{self.of}-fold-{self.fold}"


class Plan(Protocol):
    """Decides which trials run: a search, or the repeats of its finalists."""

    metric: str
    spent_s: float  # seconds of earlier processes of this study

    @property
    def num_trials(self) -> int: ...

    @property
    def seconds(self) -> float:
        """The seconds spent of the study's time budget."""
        ...

    def owns(self, record: TrialRecord) -> bool: ...

    def start(self) -> None: ...

    def next(self) -> Proposal | None: ...

    def recall(self, proposal: Proposal) -> None: ...

    def begin(self, trial: str, proposal: Proposal) -> None: ...

    def observe(self, trial: str, epochs: float, value: float) -> bool: ...

    def complete(self, trial: str, settings: dict[str, Any], *, is_failure: bool) -> None: ...


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

    def _rung(self, epochs: float) -> float | None:
        """Return the highest rung at or below this many epochs."""
        if epochs < self.grace_epochs:
            return None
        steps = math.floor(
            math.log(epochs / self.grace_epochs) / math.log(self.reduction_factor) + 1e-9
        )
        return self.grace_epochs * self.reduction_factor**steps


@dataclass
class _Child:
    """The part of one base model in the search."""

    sampler: Sampler
    rungs: Rungs | None
    num_proposed: int = 0
    is_exhausted: bool = False

    @property
    def share(self) -> float:
        return self.num_proposed / self.sampler.num_trials

    @property
    def is_done(self) -> bool:
        return self.is_exhausted or self.num_proposed >= self.sampler.num_trials


class Search:
    def __init__(
        self, study: StudyConfig, metric: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.search, self.metric, self.clock = study.search, metric, clock
        self.spent_s = 0.0  # seconds of earlier processes of this study
        self._start_s = clock()
        self.epochs: dict[str, float] = {}  # trained so far, by trial
        self.failures: set[str] = set()  # trials
        self._base_of: dict[str, int] = {}
        self._best: dict[str, float] = {}
        self._children = [
            _Child(
                samplers.make(
                    self.search.algorithm,
                    study.space(base),
                    base.num_trials or self.search.num_trials or 1,
                    seed=study.seed,
                    base_model=base.source,
                ),
                _rungs(self.search),
            )
            for base in study.base_models
        ]

    @property
    def num_trials(self) -> int:
        """The number of trials, as far as it is known now."""
        return sum(
            child.num_proposed if child.is_done else child.sampler.num_trials
            for child in self._children
        )

    @property
    def is_over_budget(self) -> bool:
        """Whether the study has used up its epochs or its time."""
        epochs, seconds = self.search.num_epochs, self.search.time_s
        return (epochs is not None and sum(self.epochs.values()) >= epochs) or (
            seconds is not None and self.seconds >= seconds
        )

    @property
    def seconds(self) -> float:
        return self.spent_s + self.clock() - self._start_s

    @property
    def most_failures(self) -> int:
        """The number of trials that may fail. A single trial may: without it there is nothing to
        rank."""
        most = self.search.max_failed
        return max(1, self.num_trials // 2) if most is None else most

    @property
    def has_failed(self) -> bool:
        """Whether too many trials failed: the cause is then rarely the trials' own settings."""
        return len(self.failures) > self.most_failures

    def owns(self, record: TrialRecord) -> bool:
        return record.of is None

    def start(self) -> None:
        """Start the time budget. Time before the first trial does not count."""
        self._start_s = self.clock()

    def next(self) -> Proposal | None:
        """Return the next trial, of the base model with the smallest share of its trials so far;
        None when no trial is left."""
        while not self.is_over_budget and not self.has_failed:
            open_bases = [at for at, child in enumerate(self._children) if not child.is_done]
            if not open_bases:
                return None
            at = min(open_bases, key=lambda at: self._children[at].share)
            child = self._children[at]
            settings = child.sampler.draw(child.num_proposed)
            if settings is None:
                child.is_exhausted = True
                continue
            child.num_proposed += 1
            return Proposal(at, child.num_proposed - 1, settings)
        return None

    def recall(self, proposal: Proposal) -> None:
        """Note a trial of an earlier process, so that it is not proposed again."""
        child = self._children[proposal.base]
        child.num_proposed = max(child.num_proposed, proposal.number + 1)

    def begin(self, trial: str, proposal: Proposal) -> None:
        self._base_of[trial] = proposal.base
        self.epochs.setdefault(trial, 0.0)

    def observe(self, trial: str, epochs: float, value: float) -> bool:
        """Record an evaluation. Return whether the trial goes on."""
        value = value if higher_is_better(self.metric) else -value
        self.epochs[trial] = max(self.epochs[trial], epochs)
        if not math.isnan(value):
            self._best[trial] = max(self._best.get(trial, -math.inf), value)
        rungs = self._children[self._base_of[trial]].rungs
        goes_on = rungs is None or rungs.goes_on(trial, epochs, value)
        return goes_on and not self.is_over_budget

    def complete(self, trial: str, settings: dict[str, Any], *, is_failure: bool) -> None:
        if is_failure:
            self.failures.add(trial)
        best = None if is_failure else self._best.get(trial)
        self._children[self._base_of[trial]].sampler.tell(settings, best)


def _rungs(search: SearchConfig) -> Rungs | None:
    return (
        Rungs(search.grace_epochs, search.reduction_factor) if search.scheduler == "asha" else None
    )


def num_trials(study: StudyConfig, base: BaseModelConfig) -> int:
    """Return the largest number of trials of a base model in the search."""
    most = base.num_trials or study.search.num_trials or 1
    if study.search.algorithm == "optuna":
        return most
    # The number does not depend on how settings are drawn.
    algorithm = "grid" if study.search.algorithm == "grid" else "random"
    return samplers.make(
        algorithm, study.space(base), most, seed=0, base_model=base.source
    ).num_trials


def num_repeats(study: StudyConfig) -> int:
    """Return the largest number of trials per base model after the search: finalists with other
    seeds or folds."""
    folds = study.data.split.folds if study.data.split.is_pooled else 1
    return study.search.num_finalists * (max(study.search.num_seeds, folds) - 1)
