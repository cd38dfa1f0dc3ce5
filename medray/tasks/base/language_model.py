"""The loss of answer tokens, and generated answers: for all tasks of language models. It loads no
model."""

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
Spans = Sequence[tuple[int, int]]  # the answers of a row: first token, end


@dataclass(frozen=True, slots=True)
class AnswerLogits:
    """The logits that predict each answer token, row by row. Logits of other positions are not
    computed."""

    logits: "Tensor"
    rows: "Tensor"  # the row of each logit
    tokens: "Tensor"  # the right token of each logit


@dataclass(frozen=True, slots=True)
class LanguageModelLoss:
    """Computes the cross-entropy of the answer tokens, as a sum per row."""

    weights: npt.NDArray[np.float64]
    spans: Callable[[Target, int], Spans]  # the answers of a row, from its target and length
    has_class_weights: bool = False  # True: a row's weight is not the number of its answer tokens

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
    """Return the span of a single answer at the row's end; the target ends with its length."""
    return ((length - target[-1], length),)


def generate(engine: "Engine", prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[str]:
    """Return one text per prompt."""
    return [chunk.text for chunk in gather(engine.generate(prompts, sampling), len(prompts))]
