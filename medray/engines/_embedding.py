"""What a layer inside a model holds of each row, caught while the model computes something else.

Not the last one: training moves its states towards the labels, where a recipe lies as near as an abstract.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medray.models.build import Built

_DEPTH = 2 / 3  # of the layers


class States:
    """What the watched layer held when it computed last."""

    def __init__(self) -> None:
        self._last: Tensor | None = None

    def hold(self, module: Any, inputs: Any, output: Any) -> None:
        self._last = output if isinstance(output, Tensor) else output[0]  # of some families with their attention

    def means(self, lengths: Sequence[int]) -> npt.NDArray[np.float32]:
        """Over the tokens of each row, which stand before its padding. Of no numbers where a model of another make holds no such states."""
        states, self._last = self._last, None
        if states is None or states.ndim != 3 or len(states) != len(lengths) or states.shape[1] < max(lengths):
            return np.zeros((len(lengths), 0), dtype=np.float32)
        mask = torch.arange(states.shape[1], device=states.device)[None] < torch.tensor(lengths, device=states.device)[:, None]
        found: npt.NDArray[np.float32] = ((states.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).cpu().numpy()
        return found


@contextmanager
def watched(built: Built) -> Iterator[States]:
    """Inside, each forward pass leaves the states of its tokens there."""
    states = States()
    plain = built.model.get_base_model() if hasattr(built.model, "get_base_model") else built.model
    layers = plain.get_submodule(built.family.layers_path)
    hook = layers[max(1, round(_DEPTH * len(layers))) - 1].register_forward_hook(states.hold)
    try:
        yield states
    finally:
        hook.remove()
