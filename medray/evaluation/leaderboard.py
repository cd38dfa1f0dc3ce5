"""The ranking of a study. Trials are chosen on validation rows; test rows say how good the choice
is, and change nothing.

Pure: plain figures in, a leaderboard out. Every column names its split.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from medray.errors import TrialError
from medray.evaluation import pooling
from medray.evaluation.bootstrap import Comparison, Interval, Results, interval, num_rows
from medray.evaluation.metrics import Metrics, higher_is_better
from medray.evaluation.pooling import Seeds
from medray.records import Evaluation, MergeRecord, TrialRecord


@dataclass(frozen=True)
class Entry:
    """A line of the leaderboard: a trial at its best epoch, or a reference."""

    name: str
    kind: Literal["trial", "reference"]
    base_model: str = ""
    base: int | None = None  # its place among the study's base models
    status: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    epoch: int | None = None
    step: int | None = None
    num_epochs: int = 0  # how many evaluations there were
    validation: Mapping[str, float] = field(default_factory=dict)
    validation_merged: Mapping[str, float] = field(
        default_factory=dict
    )  # of finalists in 4 bits, merged into plain weights
    validation_unmerged: Mapping[str, float] = field(
        default_factory=dict
    )  # of the same checkpoint, where `validation` is a mean
    test: Mapping[str, float] = field(default_factory=dict)  # of finalists and references
    test_interval: Interval | None = None  # of the figure that is ranked on
    num_parameters: int | None = None
    num_trainable: int | None = None
    seconds: float | None = None  # of training
    seconds_to_first_step: float | None = None
    ms_per_row: float | None = None  # predicting the test rows
    checkpoint: str | None = None
    error: str | None = None
    seeds: Seeds | None = (
        # of a finalist that was trained with several: figures are means, the checkpoint is the best
        # seed's
        None
    )


@dataclass(frozen=True)
class Contender:
    """A finalist or a reference, with its answers on both splits."""

    entry: Entry
    validation: Results
    test: Results
    others: "tuple[Contender, ...]" = ()  # the same finalist, trained with other seeds

    @property
    def all(self) -> "tuple[Contender, ...]":
        return (self, *self.others)


@dataclass(frozen=True)
class Pairing:
    """The winner against another, on the same rows."""

    other: str
    split: Literal["validation", "test"]
    comparison: Comparison
    is_tie: bool


@dataclass(frozen=True)
class Leaderboard:
    study: str
    metric: str
    entries: tuple[Entry, ...]  # best first; references stand where their figure puts them
    winner: str
    runner_up: str | None
    tied: tuple[str, ...]  # finalists that validation rows cannot tell from the best
    comparisons: tuple[Pairing, ...]
    num_rows: Mapping[str, int]  # by split
    num_openings: int  # of these test labels, this study's included
    num_folds: int = (
        1  # more: every row was a test row once, predicted by a model that had not seen it
    )

    @property
    def best(self) -> Entry:
        return next(entry for entry in self.entries if entry.name == self.winner)

    @property
    def tie_break(self) -> str:
        """Why the winner wins a tie."""
        best = next(entry for entry in self.entries if entry.name == self.tied[0])
        if self.winner == best.name:
            return f"{self.winner} wins by its figure"
        return (
            f"{self.winner} wins by its size: {self.best.num_parameters or 0:,} parameters, where "
            f"{best.name} has {best.num_parameters or 0:,}"
        )

    @property
    def better_baselines(self) -> list[Entry]:
        """Baselines that validation rows show to be better than the winner, the best first."""
        sign = 1 if higher_is_better(self.metric) else -1
        better = {
            pair.other
            for pair in self.comparisons
            if pair.split == "validation"
            and not pair.is_tie
            and sign * pair.comparison.difference < 0
        }
        return [
            entry for entry in self.entries if entry.kind == "reference" and entry.name in better
        ]


def best_evaluation(history: Sequence[Evaluation], metric: str) -> Evaluation | None:
    """The best evaluation of a trial's whole history, the first of equal ones; one that is not a
    number never is."""
    sign = 1 if higher_is_better(metric) else -1
    counted = [evaluation for evaluation in history if not math.isnan(evaluation.metrics[metric])]
    return max(counted, key=lambda evaluation: sign * evaluation.metrics[metric], default=None)


def entry_of(record: TrialRecord, history: Sequence[Evaluation], metric: str) -> Entry:
    started = record.started_at, record.first_step_at
    entry = Entry(
        name=record.trial,
        kind="trial",
        base_model=record.base_model,
        base=record.base,
        status=record.status,
        settings=record.settings,
        num_epochs=len(history),
        num_parameters=record.num_parameters,
        num_trainable=record.num_trainable,
        seconds=history[-1].seconds if history else None,
        seconds_to_first_step=started[1] - started[0] if started[0] and started[1] else None,
        error=record.error,
    )
    best = best_evaluation(history, metric)
    return (
        replace(entry, epoch=best.epoch, step=best.step, validation=best.metrics) if best else entry
    )


def rank(entries: Sequence[Entry], metric: str) -> list[Entry]:
    """Best first by the validation figure; those without one last."""
    sign = 1 if higher_is_better(metric) else -1
    return sorted(
        entries,
        key=lambda entry: (
            -sign * entry.validation[metric] if metric in entry.validation else math.inf
        ),
    )


def finalists(entries: Sequence[Entry], metric: str, num_finalists: int) -> list[Entry]:
    """The best trials of each base model, by validation rows; a failed trial is none, whatever it
    had reached."""
    chosen: list[Entry] = []
    for entry in rank(entries, metric):
        mates = sum(other.base == entry.base for other in chosen)
        if entry.validation and entry.status != "failed" and mates < num_finalists:
            chosen.append(entry)
    return chosen


def contender(
    entry: Entry,
    metric: str,
    *,
    validation: tuple[Metrics, Results],
    test: tuple[Metrics, Results],
    ms_per_row: float,
) -> Contender:
    """An entry with its test figures and their interval."""
    figure = interval(test[1], metric) if metric in test[1].metrics else None
    entry = replace(
        entry,
        validation=validation[0].values,
        test=test[0].values,
        test_interval=figure,
        ms_per_row=ms_per_row,
    )
    return Contender(entry, validation[1], test[1])


def pool_seeds(members: Sequence[Contender], metric: str) -> Contender:
    """One finalist of several seeds: its figures are means, and the seed with the best validation
    figure would be published."""
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
    sure = (
        pooling.interval([member.test for member in members], metric)
        if metric in members[0].test.metrics
        else None
    )
    entry = replace(
        best,
        name=entries[0].name,
        validation=pooling.mean([entry.validation for entry in entries]),
        test=pooling.mean([entry.test for entry in entries]),
        test_interval=sure,
        validation_unmerged=best.validation,
        seconds=sum(entry.seconds or 0.0 for entry in entries),
        seeds=seeds,
    )
    others = tuple(member for member in members if member.entry.name != best.name)
    return replace(by_name[best.name], entry=entry, others=others)


def f1_of(figures: Mapping[str, float], metric: str) -> str:
    """The F1 that is ranked on, and where something else is, the macro F1 of tasks that have
    one."""
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

    A tied model that has more than `tie` times fewer parameters wins; where it is None, the best
    figure does."""
    if not candidates:
        raise TrialError(f"study {study}: no trial gave a {metric}: there is nothing to rank")
    by_name = {candidate.entry.name: candidate for candidate in candidates}
    order = [
        by_name[entry.name] for entry in rank([candidate.entry for candidate in candidates], metric)
    ]
    tied = [
        candidate
        for candidate in order[1:]
        if metric in candidate.validation.metrics
        and _compare(order[0], candidate, "validation", metric).is_tie
    ]
    winner = order[0]
    for candidate in tied:
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
        tied=tuple(candidate.entry.name for candidate in [order[0], *tied]) if tied else (),
        comparisons=tuple(comparisons),
        num_rows={"validation": num_rows(winner.validation), "test": num_rows(winner.test)},
        num_openings=num_openings,
        num_folds=num_folds,
    )


def _num_parameters(candidate: Contender) -> int:
    return candidate.entry.num_parameters or 0


def _may_be_better(candidate: Contender, other: Contender, metric: str) -> bool:
    """Or always as good: what is worse in some resamples and better in none is no model to publish
    for its size."""
    against = _compare(other, candidate, "validation", metric)
    return bool(against.below) or against.low == against.high == against.difference == 0


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
