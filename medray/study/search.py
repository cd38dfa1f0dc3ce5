"""The search of a study: what is tried next, for which base model, and what is stopped. Pure: no
Ray, no disk, no model.

Every base model has a sampler and rungs of its own, so that like is compared with like, and all
draw on one budget."""

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
    of: str | None = None  # the finalist that is trained again
    seed: int = 0  # added to the study's
    fold: int = 0  # that judges, where folds are pooled

    @property
    def name(self) -> str | None:
        """What a repeated finalist is called: after its finalist."""
        if self.of is None:
            return None
        return f"{self.of}-seed-{self.seed}" if self.seed else f"{self.of}-fold-{self.fold}"


class Plan(Protocol):
    """What decides which trials run: a search, or after it the repeats of its finalists."""

    metric: str
    spent_s: float  # by earlier processes of this study

    @property
    def num_trials(self) -> int: ...

    @property
    def seconds(self) -> float:
        """Of this study's time budget that are spent."""
        ...

    def owns(self, record: TrialRecord) -> bool: ...

    def start(self) -> None: ...

    def next(self) -> Proposal | None: ...

    def recall(self, proposal: Proposal) -> None: ...

    def begin(self, trial: str, proposal: Proposal) -> None: ...

    def observe(self, trial: str, epochs: float, value: float) -> bool: ...

    def complete(self, trial: str, settings: dict[str, Any], *, failed: bool) -> None: ...


@dataclass
class Rungs:
    """Asynchronous successive halving: at each rung, a trial that is not among the best so far
    stops."""

    grace_epochs: float
    reduction_factor: float
    values: dict[float, dict[str, float]] = field(default_factory=dict)  # by rung and trial

    def goes_on(self, trial: str, epochs: float, value: float) -> bool:
        rung = self._rung(epochs)
        if rung is None or trial in self.values.get(rung, {}):
            return True
        seen = self.values.setdefault(rung, {})
        seen[trial] = -math.inf if math.isnan(value) else value
        better = sum(other > seen[trial] for other in seen.values())
        return better < max(1, math.floor(len(seen) / self.reduction_factor))

    def _rung(self, epochs: float) -> float | None:
        """The highest rung that is reached."""
        if epochs < self.grace_epochs:
            return None
        steps = math.floor(
            math.log(epochs / self.grace_epochs) / math.log(self.reduction_factor) + 1e-9
        )
        return self.grace_epochs * self.reduction_factor**steps


@dataclass
class _Child:
    """One base model's part of the search."""

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
        self.spent_s = 0.0  # by earlier processes of this study
        self._started = clock()
        self.epochs: dict[str, float] = {}  # trained so far, by trial
        self.failed: set[str] = set()
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
        """How many there will be, as far as is known now."""
        return sum(
            child.num_proposed if child.is_done else child.sampler.num_trials
            for child in self._children
        )

    @property
    def budget_is_spent(self) -> bool:
        """Whether the epochs or the time of this study are used up."""
        epochs, seconds = self.search.num_epochs, self.search.time_s
        return (epochs is not None and sum(self.epochs.values()) >= epochs) or (
            seconds is not None and self.seconds >= seconds
        )

    @property
    def seconds(self) -> float:
        return self.spent_s + self.clock() - self._started

    @property
    def most_failed(self) -> int:
        """Trials that may fail; one that is alone may, since then there is nothing to rank
        anyway."""
        most = self.search.max_failed
        return max(1, self.num_trials // 2) if most is None else most

    @property
    def has_failed(self) -> bool:
        """Whether more trials failed than may: what is wrong is then hardly the trials' own
        settings."""
        return len(self.failed) > self.most_failed

    def owns(self, record: TrialRecord) -> bool:
        return record.of is None

    def start(self) -> None:
        """The time budget counts from now: what comes before the first trial is not search."""
        self._started = self.clock()

    def next(self) -> Proposal | None:
        """The next trial, of the base model that has had the smallest share of its trials; None
        when there are no more."""
        while not self.budget_is_spent and not self.has_failed:
            open_ = [at for at, child in enumerate(self._children) if not child.is_done]
            if not open_:
                return None
            at = min(open_, key=lambda at: self._children[at].share)
            child = self._children[at]
            settings = child.sampler.draw(child.num_proposed)
            if settings is None:
                child.is_exhausted = True
                continue
            child.num_proposed += 1
            return Proposal(at, child.num_proposed - 1, settings)
        return None

    def recall(self, proposal: Proposal) -> None:
        """A trial that an earlier process proposed: it is not proposed again."""
        child = self._children[proposal.base]
        child.num_proposed = max(child.num_proposed, proposal.number + 1)

    def begin(self, trial: str, proposal: Proposal) -> None:
        self._base_of[trial] = proposal.base
        self.epochs.setdefault(trial, 0.0)

    def observe(self, trial: str, epochs: float, value: float) -> bool:
        """An evaluation; whether the trial goes on."""
        value = value if higher_is_better(self.metric) else -value
        self.epochs[trial] = max(self.epochs[trial], epochs)
        if not math.isnan(value):
            self._best[trial] = max(self._best.get(trial, -math.inf), value)
        rungs = self._children[self._base_of[trial]].rungs
        goes_on = rungs is None or rungs.goes_on(trial, epochs, value)
        return goes_on and not self.budget_is_spent

    def complete(self, trial: str, settings: dict[str, Any], *, failed: bool) -> None:
        if failed:
            self.failed.add(trial)
        best = None if failed else self._best.get(trial)
        self._children[self._base_of[trial]].sampler.tell(settings, best)


def _rungs(search: SearchConfig) -> Rungs | None:
    return (
        Rungs(search.grace_epochs, search.reduction_factor) if search.scheduler == "asha" else None
    )


def num_trials(study: StudyConfig, base: BaseModelConfig) -> int:
    """Trials of a base model in the search, at most."""
    wanted = base.num_trials or study.search.num_trials or 1
    if study.search.algorithm == "optuna":
        return wanted
    algorithm = (
        "grid" if study.search.algorithm == "grid" else "random"
    )  # how many there are does not depend on how they are drawn
    return samplers.make(
        algorithm, study.space(base), wanted, seed=0, base_model=base.source
    ).num_trials


def num_repeats(study: StudyConfig) -> int:
    """Trials of each base model after the search, at most: finalists with other seeds, or on the
    other folds."""
    folds = study.data.split.folds if study.data.split.is_pooled else 1
    return study.search.num_finalists * (max(study.search.num_seeds, folds) - 1)
