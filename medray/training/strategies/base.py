"""The protocol of strategies, which take the steps of a trial. Gradients arrive as sums, divided by
the step's global weight."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor


class Strategy(Protocol):
    """The class `Strategy` of each file in medray/training/strategies.

    The file also has `check(config)`, which lists the settings that the strategy does not support,
    and `lacking()`, which lists what this machine lacks for it. Every worker makes the same calls
    in the same order: `start`, `reduce`, `step`, `state` and `whole` may be collective."""

    # a forward pass is a collective call, so every worker makes the same number of them
    shards_model: bool
    # a process can train one trial after another with it
    is_reusable: bool
    # a worker that runs out of memory can repeat its part of a step without the others
    repeats_alone: bool

    def start(self, model: Any, state: dict[str, Any] | None) -> Any:
        """Restore a state where there is one, and return the model that the loop calls."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None: ...

    def reduce(self, numbers: Sequence[float]) -> list[float]:
        """Add gradients and numbers up over the workers, and return the sums of the numbers."""
        ...

    def step(self) -> None:
        """Clip the gradients, update, advance the schedule and clear the gradients."""
        ...

    def abandon(self) -> None:
        """Clear the gradients of a step that is repeated."""
        ...

    def state(self) -> dict[str, Any]:
        """Return the state that `start` restores, on any number of workers and with any
        strategy."""
        ...

    def whole(self) -> AbstractContextManager[object]:
        """Keep adapter and head whole on every worker inside a block, which must not run the
        model."""
        ...
