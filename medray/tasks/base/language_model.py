"""What tasks of language models share: the loss of their answers' tokens, and answers that are
generated. It loads no model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medray.tasks.base.protocol import LossInputs
from medray.types import Sampling, gather

if TYPE_CHECKING:
    from torch import Tensor

    from medray.types import Engine

Target = tuple[int, ...]
Spans = Sequence[tuple[int, int]]  # of one row, each from its first token to behind its last


@dataclass(frozen=True, slots=True)
class AnswerLogits:
    """The logits of the places before each answer token, row by row: those of no other place are
    made."""

    logits: "Tensor"
    rows: "Tensor"  # of each place
    tokens: "Tensor"  # that are right there


@dataclass(frozen=True, slots=True)
class LanguageModelLoss:
    """Cross-entropy of the answers' tokens, a sum per row."""

    weights: npt.NDArray[np.float64]
    spans: Callable[
        [Target, int], Spans
    ]  # from a row's target and length, which of its tokens are answers
    has_class_weights: bool = False  # a row's weight is then not the number of its answer tokens

    def num_tokens(self, target: Target, length: int) -> int:
        return sum(end - start for start, end in self.spans(target, length))

    def __call__(self, outputs: AnswerLogits, rows: LossInputs) -> "Tensor":
        import torch.nn.functional as F

        losses = F.cross_entropy(outputs.logits.float(), outputs.tokens, reduction="none")
        sums = losses.new_zeros(len(rows.targets)).index_add(0, outputs.rows, losses)
        if not self.has_class_weights:
            return sums
        return sums * rows.weights.to(losses) / outputs.rows.bincount(minlength=len(sums))


def answer_at_end(target: Target, length: int) -> Spans:
    """The one answer of a row whose target ends with its number of tokens."""
    return ((length - target[-1], length),)


def generate(engine: "Engine", prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[str]:
    """A text per prompt."""
    return [chunk.text for chunk in gather(engine.generate(prompts, sampling), len(prompts))]
