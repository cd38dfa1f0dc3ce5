"""The ranking of a study. Validation rows choose the winner. Test rows measure how good the choice
is and never change it.

Pure: it turns metrics into a leaderboard, whose every column names its split.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from medray.errors import TrialError
from medray.evaluation import pooling
from medray.evaluation.bootstrap import Comparison, Interval, Results, interval, num_rows
from medray.evaluation.metrics import Metrics, direction
from medray.evaluation.pooling import Seeds
from medray.evaluation.service_use import ServiceUse
from medray.records import MergeRecord


@dataclass(frozen=True)
class Entry:
    """A line of the leaderboard: a trial at its best epoch, or a reference, such as a baseline."""

    name: str
    kind: Literal["trial", "reference"]
    base_model: str = ""
    base: int | None = None  # the position among the study's base models
    status: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    epoch: int | None = None
    step: int | None = None
    num_epochs: int = 0  # the number of evaluations on all validation rows
    validation: Mapping[str, float] = field(default_factory=dict)
    # For a finalist in 4 bits: its metrics after the adapter is merged into plain weights.
    validation_merged: Mapping[str, float] = field(default_factory=dict)
    # For the same finalist, where `validation` is a mean over seeds: its checkpoint's own metrics.
    validation_unmerged: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)  # for finalists and references
    test_interval: Interval | None = None  # of the study's metric
    num_parameters: int | None = None
    num_trainable: int | None = None
    seconds: float | None = None  # training time
    seconds_to_first_step: float | None = None
    ms_per_row: float | None = None  # time to predict a test row
    checkpoint: str | None = None
    error: str | None = None
    # For a finalist with several seeds. Its metrics are means; its checkpoint is the best seed's.
    seeds: Seeds | None = None
    service: ServiceUse | None = None  # of a reference that is a service

    @property
    def is_baseline(self) -> bool:
        return self.kind == "reference" and self.service is None


@dataclass(frozen=True)
class Contender:
    """A finalist or a reference, with its results on both splits."""

    entry: Entry
    validation: Results
    test: Results
    others: "tuple[Contender, ...]" = ()  # the same finalist with other seeds

    @property
    def all(self) -> "tuple[Contender, ...]":
        return (self, *self.others)


@dataclass(frozen=True)
class Pairing:
    """A comparison of the winner with another entry on the same rows."""

    other: str
    split: Literal["validation", "test"]
    comparison: Comparison
    is_tie: bool


@dataclass(frozen=True)
class Leaderboard:
    study: str
    metric: str
    entries: tuple[Entry, ...]  # best first, references included
    winner: str
    runner_up: str | None
    tied: tuple[str, ...]  # finalists that validation rows cannot separate, the best first
    comparisons: tuple[Pairing, ...]
    num_rows: Mapping[str, int]  # by split
    num_openings: int  # how often these test labels were read, this study included
    # With more than one fold, each row was a test row once, for a model not trained on it.
    num_folds: int = 1

    @property
    def best(self) -> Entry:
        return next(entry for entry in self.entries if entry.name == self.winner)

    @property
    def tie_break(self) -> str:
        """Return the reason why the winner wins a tie."""
        best = next(entry for entry in self.entries if entry.name == self.tied[0])
        if self.winner == best.name:
            return f"{self.winner} wins by its {self.metric}"
        return (
            f"{self.winner} wins by its size: it has {self.best.num_parameters or 0:,} parameters, "
            f"{best.name} has {best.num_parameters or 0:,}"
        )

    @property
    def best_baseline(self) -> Entry | None:
        """Return the best reference on validation rows that is no service, or None where the study
        has none."""
        references = (entry for entry in self.entries if entry.is_baseline)
        return next((entry for entry in references if self.metric in entry.validation), None)

    @property
    def main_comparisons(self) -> list[Pairing]:
        """List the comparisons with the runner-up, the best baseline, the services, and the
        winner's base model before training."""
        baseline = self.best_baseline.name if self.best_baseline else ""
        others = {
            entry.name
            for entry in self.entries
            if entry.kind == "trial"
            or entry.name == baseline
            or entry.service
            or (entry.base_model and entry.base_model == self.best.base_model)
        }
        return [pair for pair in self.comparisons if pair.other in others]

    def title(self, name: str) -> str:
        """Return an entry's name as it stands within a sentence."""
        is_best = self.best_baseline is not None and name == self.best_baseline.name
        is_service = any(entry.service for entry in self.entries if entry.name == name)
        title = "the best baseline" if is_best else "the service" if is_service else ""
        return f"{title} ({name})" if title else name

    @property
    def better_baselines(self) -> list[Entry]:
        """List the baselines that are better than the winner on validation rows, best first."""
        sign = direction(self.metric)
        better = {
            pair.other
            for pair in self.comparisons
            if pair.split == "validation"
            and not pair.is_tie
            and sign * pair.comparison.difference < 0
        }
        return [entry for entry in self.entries if entry.is_baseline and entry.name in better]


def rank(entries: Sequence[Entry], metric: str) -> list[Entry]:
    """Sort entries by their validation metric, the best first and those without one last."""
    sign = direction(metric)
    return sorted(
        entries,
        key=lambda entry: (
            -sign * entry.validation[metric] if metric in entry.validation else math.inf
        ),
    )


def finalists(entries: Sequence[Entry], metric: str, num_finalists: int) -> list[Entry]:
    """Return the best trials of each base model by validation rows, without failed trials."""
    best: list[Entry] = []
    for entry in rank(entries, metric):
        num_same_base = sum(other.base == entry.base for other in best)
        if entry.validation and entry.status != "failed" and num_same_base < num_finalists:
            best.append(entry)
    return best


def contender(
    entry: Entry,
    metric: str,
    *,
    validation: tuple[Metrics, Results],
    test: tuple[Metrics, Results],
    ms_per_row: float,
) -> Contender:
    """Add the metrics of both splits and the test interval to an entry."""
    entry = replace(
        entry,
        validation=validation[0].values,
        test=test[0].values,
        test_interval=interval(test[1], metric) if metric in test[1].metrics else None,
        ms_per_row=ms_per_row,
    )
    return Contender(entry, validation[1], test[1])


def pool_seeds(members: Sequence[Contender], metric: str) -> Contender:
    """Pool one finalist's seeds: its metrics are means, and its checkpoint is that of the seed with
    the best validation metric."""
    if len(members) == 1:
        return members[0]
    by_name = {member.entry.name: member for member in members}
    best = rank([member.entry for member in members], metric)[0]
    entries = [member.entry for member in members]
    seeds = Seeds(
        trials=tuple(entry.name for entry in entries),
        validation=tuple(entry.validation[metric] for entry in entries),
        test=tuple(entry.test[metric] for entry in entries),
        published=best.name,
    )
    test_interval = (
        pooling.interval([member.test for member in members], metric)
        if metric in members[0].test.metrics
        else None
    )
    entry = replace(
        best,
        name=entries[0].name,
        validation=pooling.mean([entry.validation for entry in entries]),
        test=pooling.mean([entry.test for entry in entries]),
        test_interval=test_interval,
        validation_unmerged=best.validation,
        seconds=sum(entry.seconds or 0.0 for entry in entries),
        seeds=seeds,
    )
    others = tuple(member for member in members if member.entry.name != best.name)
    return replace(by_name[best.name], entry=entry, others=others)


def f1_of(figures: Mapping[str, float], metric: str) -> str:
    """Return the name of the study's metric if it is an F1, else macro F1 if the task has it."""
    return "f1_macro" if "f1_macro" in figures and not metric.startswith("f1_") else metric


def merge_of(entry: Entry, metric: str) -> MergeRecord | None:
    if not entry.validation_merged:
        return None
    f1 = f1_of(entry.validation, metric)
    return MergeRecord(
        metric=f1,
        unmerged=entry.validation_unmerged.get(f1, entry.validation[f1]),
        merged=entry.validation_merged[f1],
    )


def conclude(
    study: str,
    metric: str,
    trials: Sequence[Entry],
    candidates: Sequence[Contender],
    references: Sequence[Contender],
    num_openings: int,
    *,
    num_folds: int = 1,
    tie: float | None = None,
) -> Leaderboard:
    """Choose the winner among the candidates by validation rows, and compare it with the others on
    both splits.

    If `tie` is set, a tied model with more than `tie` times fewer parameters wins over the best
    one."""
    if not candidates:
        raise TrialError(
            f"study {study}: no trial has a {metric}, so there is nothing to rank; see the errors "
            "of its trials"
        )
    by_name = {candidate.entry.name: candidate for candidate in candidates}
    order = [
        by_name[entry.name] for entry in rank([candidate.entry for candidate in candidates], metric)
    ]
    ties = [
        candidate
        for candidate in order[1:]
        if metric in candidate.validation.metrics
        and _compare(order[0], candidate, "validation", metric).is_tie
    ]
    winner = order[0]
    for candidate in ties:
        is_cheaper = tie is not None and _num_parameters(candidate) * tie < _num_parameters(winner)
        if is_cheaper and all(
            _may_be_better(candidate, other, metric) for other in (order[0], winner)
        ):
            winner = candidate
    others = [candidate for candidate in order if candidate is not winner]
    comparisons = [
        pair for other in [*others[:1], *references] for pair in _pairs(winner, other, metric)
    ]
    entry_by_name = {
        candidate.entry.name: candidate.entry for candidate in [*candidates, *references]
    }
    entries = [entry_by_name.get(entry.name, entry) for entry in trials] + [
        candidate.entry for candidate in references
    ]
    return Leaderboard(
        study=study,
        metric=metric,
        entries=tuple(rank(entries, metric)),
        winner=winner.entry.name,
        runner_up=others[0].entry.name if others else None,
        tied=tuple(candidate.entry.name for candidate in [order[0], *ties]) if ties else (),
        comparisons=tuple(comparisons),
        num_rows={"validation": num_rows(winner.validation), "test": num_rows(winner.test)},
        num_openings=num_openings,
        num_folds=num_folds,
    )


def _num_parameters(candidate: Contender) -> int:
    return candidate.entry.num_parameters or 0


def _may_be_better(candidate: Contender, other: Contender, metric: str) -> bool:
    """Return whether the candidate is better in some resample, or equal in all. A model that is
    never better and sometimes worse must not be published for its size."""
    comparison = _compare(other, candidate, "validation", metric)
    return bool(comparison.below) or comparison.low == comparison.high == comparison.difference == 0


def _compare(
    first: Contender, second: Contender, split: Literal["validation", "test"], metric: str
) -> Comparison:
    one, two = (
        [member.validation if split == "validation" else member.test for member in side.all]
        for side in (first, second)
    )
    return pooling.compare(one, two, metric)


def _pairs(winner: Contender, other: Contender, metric: str) -> list[Pairing]:
    if metric not in winner.test.metrics:
        return []
    on_validation = _compare(winner, other, "validation", metric)
    on_test = _compare(winner, other, "test", metric)
    return [
        Pairing(other.entry.name, "validation", on_validation, on_validation.is_tie),
        Pairing(other.entry.name, "test", on_test, on_test.is_tie),
    ]
