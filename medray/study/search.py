"""The search of a study: the next trial, its base model, and early stops. It is pure: no Ray, no
disk, no model.

Each base model has its own sampler and rungs, so trials compare within a base model. All base
models share one budget."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from medray.config.study import LEARNING_RATE, BaseModelConfig, StudyConfig
from medray.evaluation.metrics import LOSSES, direction
from medray.records import TrialRecord
from medray.study import samplers
from medray.study.early_stop import Patience, Rungs, first_rung
from medray.study.samplers import LearningRates, Sampler

_PATIENCE = 2  # evaluations without progress


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

    def observe(self, trial: str, epochs: float, metrics: Mapping[str, float]) -> bool: ...

    def complete(self, trial: str, settings: dict[str, Any], *, is_failure: bool) -> None: ...

    def early_rungs(self, base: int) -> tuple[float, ...]:
        """Return the rungs of a base model inside its first epoch."""
        ...


@dataclass
class _Child:
    """The part of one base model in the search."""

    sampler: Sampler
    rungs: Rungs | None
    compares_losses: bool
    patience: Patience = field(default_factory=lambda: Patience(_PATIENCE))
    num_proposed: int = 0
    is_exhausted: bool = False

    @property
    def share(self) -> float:
        return self.num_proposed / self.sampler.num_trials

    @property
    def is_done(self) -> bool:
        return self.is_exhausted or self.num_proposed >= self.sampler.num_trials


class Search:
    """Proposes trials and stops them early.

    `guesses` has the settings to try first of each base model, and `steps_per_epoch` its steps in
    an epoch; without these, a trial can be stopped from its first epoch on."""

    def __init__(
        self,
        study: StudyConfig,
        metric: str,
        *,
        guesses: Sequence[Mapping[str, Any]] = (),
        steps_per_epoch: Sequence[int] = (),
        clock: Callable[[], float] = time.monotonic,
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
                _sampler(study, base, guesses[at] if guesses else {}),
                _rungs(study, base, steps_per_epoch[at] if steps_per_epoch else 0),
                # Losses of different tasks, such as with other class weights, do not compare.
                not any(path.startswith("task.") for path in study.space(base)),
            )
            for at, base in enumerate(study.base_models)
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

    def observe(self, trial: str, epochs: float, metrics: Mapping[str, float]) -> bool:
        """Record an evaluation. Return whether the trial goes on."""
        value = metrics[self.metric] * direction(self.metric)
        if self.epochs[trial] < 1 <= epochs:
            self._best.pop(trial, None)  # early evaluations, on few rows
        self.epochs[trial] = max(self.epochs[trial], epochs)
        if not math.isnan(value):
            self._best[trial] = max(self._best.get(trial, -math.inf), value)
        goes_on = self._goes_on(trial, epochs, value, metrics)
        return goes_on and not self.is_over_budget

    def _goes_on(
        self, trial: str, epochs: float, value: float, metrics: Mapping[str, float]
    ) -> bool:
        child = self._children[self._base_of[trial]]
        if child.rungs is None:
            return True
        loss = next((metrics[name] for name in LOSSES if name in metrics), None)
        # Two trials differ by less chance in their losses than in their F1.
        at_rung = -loss if loss is not None and child.compares_losses else value
        goes_on = child.rungs.goes_on(trial, epochs, at_rung)
        first_epochs = max(1.0, child.rungs.grace_epochs)  # no early evaluation counts
        if loss is None or child.sampler.num_trials == 1 or epochs < first_epochs:
            return goes_on
        return child.patience.goes_on(trial, epochs, loss, value) and goes_on

    def early_rungs(self, base: int) -> tuple[float, ...]:
        child = self._children[base]
        if child.rungs is None or child.sampler.num_trials == 1:
            return ()
        return child.rungs.below(1.0)

    def complete(self, trial: str, settings: dict[str, Any], *, is_failure: bool) -> None:
        if is_failure:
            self.failures.add(trial)
        best = None if is_failure else self._best.get(trial)
        self._children[self._base_of[trial]].sampler.tell(settings, best)


def _sampler(study: StudyConfig, base: BaseModelConfig, guess: Mapping[str, Any]) -> Sampler:
    if study.tries_rates(base):
        first = guess.get(LEARNING_RATE, study.train.peak_rate)
        return LearningRates(float(first), study.num_draws(base))
    return samplers.make(
        study.search.algorithm,
        study.space(base),
        study.num_draws(base),
        seed=study.seed,
        base_model=base.source,
        guess=guess,
    )


def _rungs(study: StudyConfig, base: BaseModelConfig, steps_per_epoch: int) -> Rungs | None:
    search = study.search
    if not study.uses_asha(base):
        return None
    grace_epochs = search.grace_epochs
    if grace_epochs is None:
        grace_epochs = first_rung(
            study.trial(base).train, steps_per_epoch, reduction_factor=search.reduction_factor
        )
    return Rungs(grace_epochs, search.reduction_factor)


def num_trials(study: StudyConfig, base: BaseModelConfig) -> int:
    """Return the largest number of trials of a base model in the search."""
    most = study.num_draws(base)
    if study.search.algorithm == "optuna" or study.tries_rates(base):
        return most
    # The number does not depend on how settings are drawn.
    algorithm = "grid" if study.search.algorithm == "grid" else "random"
    return samplers.make(
        algorithm, study.space(base), most, seed=0, base_model=base.source
    ).num_trials


def most_trials(study: StudyConfig) -> int:
    return sum(num_trials(study, base) for base in study.base_models)


def num_repeats(study: StudyConfig) -> int:
    """Return the largest number of trials per base model after the search: finalists with other
    seeds or folds."""
    folds = study.data.split.folds if study.data.split.is_pooled else 1
    return study.search.num_finalists * (max(study.search.num_seeds, folds) - 1)
