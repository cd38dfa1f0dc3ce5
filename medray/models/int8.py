"""Linear layers in 8 bits, on a CPU: weights by output channel, once; what flows in by its range, at every call.

The layers that LoRA adapts; embeddings, norms, attention's products and heads stay in fp32. Of merged models.
"""

import warnings
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import Linear, Module

from medray.errors import ConfigError
from medray.models.build import Built
from medray.models.cpu.linear import Held, put_back_after, replace_linears
from medray.models.families import FAMILIES

# Without it sums of two products of bytes are kept in 16 bits, where they overflow unless a bit of the inputs is given up.
_NEEDED = "avx512_vnni"


def check(built: Built) -> None:
    """Raises what keeps this model from 8 bits."""
    source, device = built.base.source, next(built.model.parameters()).device.type
    if built.head is None:
        raise ConfigError(f"{source}: is a language model: 8 bits are for models with a head")
    if built.family.name not in FAMILIES:
        raise ConfigError(f"{source}: its type {built.family.name!r} has no row in medray's table: 8 bits are for {', '.join(FAMILIES)}")
    if device != "cpu":
        raise ConfigError(f"{source}: is on {device}: 8 bits are for CPUs")
    if not is_supported():
        raise ConfigError("precision int8: this processor has no AVX512_VNNI, which adds up products of bytes")


def is_supported() -> bool:
    return bool(torch.cpu.get_capabilities().get(_NEEDED, False))


class Linear8(Module):
    def __init__(self, linear: Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=1e-12).double() / 127
        with warnings.catch_warnings():  # PyTorch means to replace its types of quantised tensors; of 2.13 we need this one here
            warnings.simplefilter("ignore", UserWarning)
            held = torch.quantize_per_channel(weight, scales, torch.zeros_like(scales, dtype=torch.long), 0, torch.qint8)
            bias = None if linear.bias is None else linear.bias.detach().float()
            self.packed = torch.ops.quantized.linear_prepack(held, bias)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic(inputs, self.packed, False)


def quantise(built: Built) -> Held:
    """In place. What was there before, for who wants it back."""
    return replace_linears(built, Linear8)


def quantised(built: Built) -> AbstractContextManager[None]:
    """The model as `quantise` leaves it, and afterwards as it was."""
    return put_back_after(quantise(built))
