"""The line of a trial on the leaderboard, from its record and its evaluations."""

import math
from collections.abc import Sequence
from dataclasses import replace

from medray.evaluation.leaderboard import Entry
from medray.evaluation.metrics import direction
from medray.records import Evaluation, TrialRecord


def best_evaluation(history: Sequence[Evaluation], metric: str) -> Evaluation | None:
    """Return the best evaluation of a trial's whole history, the first of equal ones. Early ones
    and those whose metric is not a number are skipped."""
    sign = direction(metric)
    numbers = [
        evaluation
        for evaluation in history
        if not evaluation.is_early and not math.isnan(evaluation.metrics[metric])
    ]
    return max(numbers, key=lambda evaluation: sign * evaluation.metrics[metric], default=None)


def entry_of(record: TrialRecord, history: Sequence[Evaluation], metric: str) -> Entry:
    start, first_step = record.started_at, record.first_step_at
    entry = Entry(
        name=record.trial,
        kind="trial",
        base_model=record.base_model,
        base=record.base,
        status=record.status,
        settings=record.settings,
        num_epochs=sum(not evaluation.is_early for evaluation in history),
        num_parameters=record.num_parameters,
        num_trainable=record.num_trainable,
        seconds=history[-1].seconds if history else None,
        seconds_to_first_step=first_step - start if start and first_step else None,
        error=record.error,
    )
    best = best_evaluation(history, metric)
    return (
        replace(entry, epoch=best.epoch, step=best.step, validation=best.metrics) if best else entry
    )
