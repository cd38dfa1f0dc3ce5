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


@contextmanager
def watched(built: Built) -> Iterator[list[Tensor]]:
    """Inside, each forward pass puts the states of its tokens into the list."""
    states: list[Tensor] = []
    plain = built.model.get_base_model() if hasattr(built.model, "get_base_model") else built.model
    layers = plain.get_submodule(built.family.layers_path)
    hook = layers[max(1, round(_DEPTH * len(layers))) - 1].register_forward_hook(
        lambda module, inputs, output: states.append(_states(output))
    )
    try:
        yield states
    finally:
        hook.remove()


def _states(output: Any) -> Tensor:
    """Layers of some families give their states alone, those of others with their attention."""
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found


def means(states: Tensor, lengths: Sequence[int]) -> npt.NDArray[np.float32]:
    """Over the tokens of each row, which stand before its padding."""
    mask = torch.arange(states.shape[1], device=states.device)[None] < torch.tensor(lengths, device=states.device)[:, None]
    found: npt.NDArray[np.float32] = ((states.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).cpu().numpy()
    return found
