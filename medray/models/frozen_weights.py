"""The frozen weights of a base model on a GPU, in 16 bits where that is exact.

Autocast casts frozen weights in every call, and keeps the copies for the backward pass. Weights
that were stored in 16 bits need no copy, and the results are the same numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import Linear, Module, Parameter

from medray.config.trial import Precision
from medray.models import quantization
from medray.models.precision import DTYPES


def keeps_16_bits(device: str, precision: Precision) -> bool:
    return device == "cuda" and precision != "fp32"


def move(network: Any, device: str, precision: Precision, *, moves_weights: bool = True) -> None:
    """Prepare a network for the device that trains it in this precision, and move it there. A
    strategy that shards weights moves them itself."""
    if keeps_16_bits(device, precision):
        place = device if moves_weights else "cpu"
        for linear in frozen_layers(network):
            if _narrow(linear, "weight", place, precision) and linear.bias is not None:
                _narrow(linear, "bias", place, precision)
        quantization.unpack_gradients_to(network, DTYPES[precision])
    if moves_weights:
        network.to(device)


def widen(network: Any) -> None:
    """Put the weights that are in 16 bits back in fp32."""
    for linear in _narrow_layers(network):
        linear.float()


@contextmanager
def exact(network: Any) -> Iterator[None]:
    """Let a network compute in fp32 inside a block. Each layer has its weights in fp32 during its
    own call, so there is no second copy of the model."""
    originals: dict[Module, dict[str, Parameter]] = {}

    def widen_weights(module: Module, inputs: Any) -> None:
        originals[module] = dict(module.named_parameters(recurse=False))
        for name, parameter in originals[module].items():
            setattr(module, name, Parameter(parameter.float(), requires_grad=False))

    def put_back(module: Module, inputs: Any = None, outputs: Any = None) -> None:
        for name, parameter in originals.pop(module).items():
            setattr(module, name, parameter)

    layers = _narrow_layers(network)
    hooks = [layer.register_forward_pre_hook(widen_weights) for layer in layers]
    # before ZeRO-3's hook, which shards the weights again that its first hook has gathered
    hooks += [layer.register_forward_hook(put_back, prepend=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in list(originals):
            put_back(module)


def stored_type(config: Any, precision: Precision) -> torch.dtype | None:
    """Return the 16 bits in which `move` keeps the layers of a base on a GPU, by its
    configuration."""
    name = str(getattr(config, "dtype", None)).removeprefix("torch.")
    types = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.bfloat16, torch.float16)}
    return types.get(name) if precision != "fp32" else None


def frozen_layers(network: Module) -> list[Linear]:
    """Return linear layers that do not train and share no weight with another module."""
    owners: dict[int, int] = {}
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return [
        module
        for module in network.modules()
        if type(module) is Linear
        and not any(
            parameter.requires_grad or owners[id(parameter)] > 1
            for parameter in module.parameters(recurse=False)
        )
    ]


def _narrow_layers(network: Module) -> list[Linear]:
    return [
        module
        for module in network.modules()
        if type(module) is Linear
        and module.weight.dtype in (torch.bfloat16, torch.float16)
        and not module.weight.requires_grad
    ]


def _narrow(linear: Linear, name: str, device: str, precision: Precision) -> bool:
    """Convert one weight to the first type of 16 bits that holds each of its numbers, and return
    whether there is one."""
    weight, own = linear.get_parameter(name).detach().to(device), DTYPES[precision]
    for dtype in (own, torch.float16 if own == torch.bfloat16 else torch.bfloat16):
        half = weight.to(dtype)
        if torch.equal(half.to(weight.dtype), weight):
            setattr(linear, name, Parameter(half, requires_grad=False))
            return True
    return False
