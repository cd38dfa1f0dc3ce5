"""Plans the steps of an epoch: the rows of each step, rank and micro-batch.

The same arguments give the same plan everywhere. A gradient is the sum over a step's rows divided
by the step's weight, so the cut into micro-batches changes speed and memory, never results."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medray.errors import TrialError

_STEPS_PER_BUCKET = 64  # steps per bucket; rows are sorted by length inside a bucket
_JITTER = 0.02  # relative change of lengths before sorting, so that epochs have different steps


@dataclass(frozen=True, slots=True)
class MicroBatch:
    rows: tuple[int, ...]
    fill: bool = False  # runs with weight 0, because another rank has one more micro-batch


@dataclass(frozen=True, slots=True)
class Step:
    ranks: tuple[tuple[MicroBatch, ...], ...]
    weight: float  # sum over all rows of the step and all ranks

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
    """Plan one epoch: every row once, with `samples_per_step` rows per step.

    The remaining rows make one smaller step."""
    if samples_per_step < world_size:
        raise TrialError(
            f"train.samples_per_step {samples_per_step} is less than the {world_size} workers; "
            "each "
            "worker needs a row in every step"
        )
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    num_left = len(order) % samples_per_step
    whole, rest = order[: len(order) - num_left], order[len(order) - num_left :]
    sort_lengths = lengths * rng.uniform(1 - _JITTER, 1 + _JITTER, len(lengths))
    steps: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(whole), samples_per_step * _STEPS_PER_BUCKET):
        bucket = whole[start : start + samples_per_step * _STEPS_PER_BUCKET]
        bucket = bucket[np.argsort(sort_lengths[bucket], kind="stable")]
        steps += np.split(bucket, len(bucket) // samples_per_step)
    if num_left:
        steps.append(rest)
    order_of_steps = rng.permutation(len(steps))
    return [_step(steps[at], lengths, weights, token_budget, world_size) for at in order_of_steps]


def typical_batch(
    lengths: npt.NDArray[np.int64], *, token_budget: int, samples_per_step: int
) -> MicroBatch:
    """Return rows of about the median length, at most `token_budget` tokens or one step."""
    by_length = lengths.argsort(kind="stable")
    middle = len(by_length) // 2
    count = max(1, min(samples_per_step, token_budget // int(lengths[by_length[middle]]), middle))
    return MicroBatch(tuple(int(row) for row in by_length[middle - count + 1 : middle + 1]))


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
    num_batches = max(len(batches) for batches in per_rank)
    shortest = int(rows[-1])
    ranks = [
        (*batches, *[MicroBatch((shortest,), fill=True)] * (num_batches - len(batches)))
        for batches in per_rank
    ]
    return Step(ranks=tuple(ranks), weight=float(weights[rows].sum()))


def micro_batches(
    rows: Sequence[int], lengths: npt.NDArray[np.int64], token_budget: int
) -> tuple[MicroBatch, ...]:
    """Cut rows, longest first, into batches of at most `token_budget` tokens, padding included.

    A single row may exceed the budget."""
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
