"""How a step is taken. Gradients arrive as sums already divided by the step's global weight."""

from pathlib import Path
from typing import Protocol

from torch import Tensor

from medray.training.slot import Slot


class Strategy(Protocol):
    """A file of medray/training/strategies: a class `Strategy` with this shape."""

    max_slots: int | None  # how many trials may share the frozen base; None: any number

    def backward(self, loss: Tensor, *, last: bool) -> None: ...

    def reduce(self, slot: Slot, loss: float) -> float:
        """Add gradients and loss up over the workers, where there are several; the whole step's loss comes back."""
        ...

    def step(self, slot: Slot) -> None:
        """Clip, update, advance the schedule, clear the gradients."""
        ...

    def abandon(self, slot: Slot) -> None:
        """Forget the gradients of a step that is to be repeated."""
        ...

    def save(self, folder: Path) -> None: ...

    def restore(self, folder: Path) -> None: ...
