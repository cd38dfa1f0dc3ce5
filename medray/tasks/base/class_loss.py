"""The loss of a head whose rows have one class, or several labels."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medray.tasks.base.protocol import LossInputs
from medray.types import Floats

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ClassLoss:
    """Computes the cross-entropy of each row's class, or the mean over its labels."""

    weights: Floats
    multi_label: bool
    smoothing: float

    def __call__(self, outputs: Any, rows: LossInputs) -> "Tensor":
        import torch
        import torch.nn.functional as F

        logits, smoothing = outputs.logits.float(), self.smoothing
        if self.multi_label:
            active = torch.zeros(logits.shape)
            for row, target in enumerate(rows.targets):
                active[row, list(target)] = 1
            smooth = active.to(logits.device) * (1 - smoothing) + smoothing / 2
            losses = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(
                dim=1
            )
        else:
            classes = torch.tensor([target[0] for target in rows.targets], device=logits.device)
            losses = F.cross_entropy(logits, classes, reduction="none", label_smoothing=smoothing)
        return rows.weights.to(losses) * losses
