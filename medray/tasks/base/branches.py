"""Rows of branches: a prompt, questions after it, and the options of each to score. Their layout is
a row's target. It loads no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medray.tasks.base.protocol import LossInputs
from medray.types import Branch, TokenIds

if TYPE_CHECKING:
    from torch import Tensor

_SCALE = 1_000_000  # of a share in a target, which holds integers


@dataclass(frozen=True, slots=True)
class BranchRow:
    """A prompt with its branches, and the right share of each continuation."""

    prompt: TokenIds
    branches: tuple[Branch, ...]
    shares: tuple[tuple[float, ...], ...]  # per branch

    def tokens(self) -> TokenIds:
        tails = (
            token
            for branch in self.branches
            for ids in (branch.tokens, *branch.continuations)
            for token in ids
        )
        return (*self.prompt, *tails)

    def target(self) -> TokenIds:
        target = [len(self.prompt), len(self.branches)]
        for branch, shares in zip(self.branches, self.shares, strict=True):
            target += [len(branch.tokens), len(branch.continuations)]
            target += [len(ids) for ids in branch.continuations]
            target += [round(share * _SCALE) for share in shares]
        return tuple(target)

    @classmethod
    def parse(cls, tokens: Sequence[int], target: Sequence[int]) -> "BranchRow":
        words, layout = iter(map(int, tokens)), parse_target(target)
        prompt = tuple(islice(words, target[0]))
        branches = tuple(
            Branch(
                tuple(islice(words, length)),
                tuple(tuple(islice(words, each)) for each in lengths),
            )
            for length, lengths, _ in layout
        )
        return cls(prompt, branches, tuple(shares for _, _, shares in layout))


def parse_target(target: Sequence[int]) -> list[tuple[int, TokenIds, tuple[float, ...]]]:
    """Return per branch its length, the lengths of its continuations, and their right shares."""
    numbers = iter(target[2:])
    branches = []
    for _ in range(target[1]):
        length, num = next(numbers), next(numbers)
        lengths, counts = tuple(islice(numbers, num)), tuple(islice(numbers, num))
        total = sum(counts) or 1  # of a row without answers
        branches.append((length, lengths, tuple(count / total for count in counts)))
    return branches


@dataclass(frozen=True, slots=True)
class BranchLoss:
    """Computes the cross-entropy between the right shares and the softmax of the scores, as a sum
    over the branches of each row."""

    weights: npt.NDArray[np.float64]  # the number of branches of each row

    @classmethod
    def of(cls, targets: Sequence[TokenIds]) -> "BranchLoss":
        return cls(np.array([target[1] for target in targets], dtype=np.float64))

    def num_tokens(self, target: TokenIds, length: int) -> int:
        """Return the number of tokens of a row after its prompt, most of which are scored."""
        return length - target[0]

    def __call__(self, outputs: "Sequence[Sequence[Tensor]]", rows: LossInputs) -> "Tensor":
        import torch

        sums = []
        for scores, target in zip(outputs, rows.targets, strict=True):
            losses = [
                -(torch.tensor(shares, device=values.device) * values.float().log_softmax(0)).sum()
                for values, (_, _, shares) in zip(scores, parse_target(target), strict=True)
            ]
            sums.append(torch.stack(losses).sum())
        return torch.stack(sums)


class HeadBranchLoss(BranchLoss):
    """The same loss for an encoder, whose head scores each continuation as a row of its own."""

    def shape(self, target: TokenIds) -> tuple[int, int]:
        """Return the number of rows, and the tokens of the longest one."""
        lengths = [length for _, own, _ in parse_target(target) for length in own]
        return len(lengths), max(lengths)
