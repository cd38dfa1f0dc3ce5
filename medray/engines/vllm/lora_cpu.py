"""Replaces vLLM's LoRA on CPUs by one product for all tokens of an adapter.

vLLM 0.29.0 copies the weights of the adapter for every single token, which is most of a step. For a
token without an adapter it uses the weights in the last slot, whichever they are. vLLM imports this
file in each of its workers, by `worker_extension_cls`."""

from typing import Any

from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

_update = PunicaWrapperCPU.update_metadata
Places = slice | Tensor


class Extension:
    """The empty extension of vLLM's worker: importing this file is enough."""


def groups(places: Tensor) -> list[tuple[int, Places]]:
    """Return the slot of each adapter with its tokens. Tokens without an adapter (-1) are left
    out."""
    slots = places.unique().tolist()
    if len(slots) == 1:
        return [] if slots[0] < 0 else [(slots[0], slice(None))]
    return [(place, (places == place).nonzero()[:, 0]) for place in slots if place >= 0]


def update(self: Any, *args: Any, **options: Any) -> None:
    _update(self, *args, **options)
    self.groups = groups(self.token_lora_indices)


def shrink(self: Any, y: Tensor, x: Tensor, weights: Tensor, scale: float) -> None:
    for place, tokens in self.groups:
        product = x[tokens] @ _matrix(weights, place).T
        y[tokens, : product.shape[1]] = scale * product.to(y.dtype)


def expand(
    self: Any, y: Tensor, x: Tensor, weights: Tensor, start: int, size: int, add_inputs: bool = True
) -> None:
    for place, tokens in self.groups:
        product = x[tokens].to(y.dtype) @ _matrix(weights, place).to(y.dtype).T
        y[tokens, start : start + size] = (
            product + y[tokens, start : start + size] if add_inputs else product
        )


def _matrix(weights: Tensor, place: int) -> Tensor:
    return weights[place].reshape(-1, weights.shape[-1])


PunicaWrapperCPU.update_metadata = update
PunicaWrapperCPU._apply_shrink = shrink
PunicaWrapperCPU._apply_expand = expand
