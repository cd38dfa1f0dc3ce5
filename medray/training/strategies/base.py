"""How a step is taken. Gradients arrive as sums already divided by the step's global weight."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor


class Strategy(Protocol):
    """A file of medray/training/strategies: a class `Strategy` with this shape, made with the
    trial's slot, `check(config)`, which lists what a trial cannot have with it, and `lacking()`,
    which lists what this machine needs for it.

    Every worker makes the same calls in the same order: `start`, `reduce`, `step`, `state` and
    `whole` may be calls in common."""

    shards_model: (
        bool  # a forward pass is a call in common: every worker makes the same number of them
    )
    # a worker that ran out of memory may cut its part of a step anew, unnoticed by the others
    repeats_alone: bool

    def start(self, model: Any, stored: dict[str, Any] | None) -> Any:
        """Go on from a stored state, where there is one; the model as the loop is to call it comes
        back."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None: ...

    def reduce(self, numbers: Sequence[float]) -> list[float]:
        """Add gradients and numbers up over the workers, where there are several; the sums of the
        numbers come back."""
        ...

    def step(self) -> None:
        """Clip, update, advance the schedule, clear the gradients."""
        ...

    def abandon(self) -> None:
        """Forget the gradients of a step that is to be repeated."""
        ...

    def state(self) -> dict[str, Any]:
        """What `start` goes on from, on any number of workers and with any strategy."""
        ...

    def whole(self) -> AbstractContextManager[object]:
        """For the time of a block adapter and head are whole on every worker; the model is not run
        in it."""
        ...
