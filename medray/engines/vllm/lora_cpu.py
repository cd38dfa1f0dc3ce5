"""Adapters on vLLM's CPU: one product for all tokens of an adapter.

vLLM 0.29.0 copies the whole weights of its adapter for every single token, which is most of a step,
and takes for a token without an adapter those in the last place, whatever is there. vLLM imports
this in each of its workers, by `worker_extension_cls`."""

from typing import Any

from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

_update = PunicaWrapperCPU.update_metadata
Places = slice | Tensor


class Extension:
    """What vLLM adds to its worker: nothing, the import is what counts."""


def groups(places: Tensor) -> list[tuple[int, Places]]:
    """Where each adapter's weights lie, and its tokens; those without an adapter (-1) are in
    none."""
    found = places.unique().tolist()
    if len(found) == 1:
        return [] if found[0] < 0 else [(found[0], slice(None))]
    return [(place, (places == place).nonzero()[:, 0]) for place in found if place >= 0]


def update(self: Any, *args: Any, **options: Any) -> None:
    _update(self, *args, **options)
    self.groups = groups(self.token_lora_indices)


def shrink(self: Any, y: Tensor, x: Tensor, weights: Tensor, scale: float) -> None:
    for place, tokens in self.groups:
        made = x[tokens] @ _matrix(weights, place).T
        y[tokens, : made.shape[1]] = scale * made.to(y.dtype)


def expand(
    self: Any, y: Tensor, x: Tensor, weights: Tensor, start: int, size: int, add_inputs: bool = True
) -> None:
    for place, tokens in self.groups:
        made = x[tokens].to(y.dtype) @ _matrix(weights, place).to(y.dtype).T
        y[tokens, start : start + size] = (
            made + y[tokens, start : start + size] if add_inputs else made
        )


def _matrix(weights: Tensor, place: int) -> Tensor:
    return weights[place].reshape(-1, weights.shape[-1])


PunicaWrapperCPU.update_metadata = update
PunicaWrapperCPU._apply_shrink = shrink
PunicaWrapperCPU._apply_expand = expand
