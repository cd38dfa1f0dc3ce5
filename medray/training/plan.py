"""Which rows are in which step, on which rank, in which micro-batch. Pure: the same arguments give
the same plan everywhere.

A gradient is the sum over a step's rows divided by the step's weight, so this file decides speed
and memory, never results."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medray.errors import TrialError

_STEPS_PER_BUCKET = 64  # rows are sorted by length inside a bucket of this many steps
_JITTER = (
    0.02  # lengths are moved this much before sorting, so that no epoch repeats another's steps
)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    rows: tuple[int, ...]
    fill: bool = False  # runs with weight 0: another rank has one more micro-batch


@dataclass(frozen=True, slots=True)
class Step:
    ranks: tuple[tuple[MicroBatch, ...], ...]
    weight: float  # of all rows of the step, over all ranks

    @property
    def rows(self) -> list[int]:
        return [
            row for rank in self.ranks for batch in rank if not batch.fill for row in batch.rows
        ]


def plan(
    lengths: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    *,
    token_budget: int,
    samples_per_step: int,
    world_size: int,
    seed: int,
    epoch: int,
) -> list[Step]:
    """One epoch: every row once, `samples_per_step` rows a step (what is left over makes one
    smaller step)."""
    if samples_per_step < world_size:
        raise TrialError(
            f"train.samples_per_step {samples_per_step} is less than the {world_size} workers: "
            "each needs a row in every step"
        )
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    left_over = len(order) % samples_per_step
    whole, rest = order[: len(order) - left_over], order[len(order) - left_over :]
    jittered = lengths * rng.uniform(1 - _JITTER, 1 + _JITTER, len(lengths))
    steps: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(whole), samples_per_step * _STEPS_PER_BUCKET):
        bucket = whole[start : start + samples_per_step * _STEPS_PER_BUCKET]
        bucket = bucket[np.argsort(jittered[bucket], kind="stable")]
        steps += np.split(bucket, len(bucket) // samples_per_step)
    if left_over:
        steps.append(rest)
    order_of_steps = rng.permutation(len(steps))
    return [_step(steps[at], lengths, weights, token_budget, world_size) for at in order_of_steps]


def _step(
    rows: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    token_budget: int,
    world_size: int,
) -> Step:
    rows = rows[np.argsort(-lengths[rows], kind="stable")]
    per_rank = [
        micro_batches([int(row) for row in rows[rank::world_size]], lengths, token_budget)
        for rank in range(world_size)
    ]
    most = max(len(batches) for batches in per_rank)
    shortest = int(rows[-1])
    filled = [
        (*batches, *[MicroBatch((shortest,), fill=True)] * (most - len(batches)))
        for batches in per_rank
    ]
    return Step(ranks=tuple(filled), weight=float(weights[rows].sum()))


def micro_batches(
    rows: Sequence[int], lengths: npt.NDArray[np.int64], token_budget: int
) -> tuple[MicroBatch, ...]:
    """Cut rows, longest first, so that rows x longest stays within the budget; a single row always
    fits."""
    batches: list[tuple[int, ...]] = []
    batch: list[int] = []
    for row in rows:
        if batch and (len(batch) + 1) * int(lengths[batch[0]]) > token_budget:
            batches.append(tuple(batch))
            batch = []
        batch.append(row)
    if batch:
        batches.append(tuple(batch))
    return tuple(MicroBatch(rows) for rows in batches)
