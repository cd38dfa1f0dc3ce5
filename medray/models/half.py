"""A merged model in half precision: what autocast would cast at every call is cast once.

What flows between the layers of a language model stays in fp32, so its numbers are autocast's. An encoder in bf16 holds everything so,
which rounds a little more; on a CPU the weights of its layers lie as they are multiplied, instead of being laid out at every call, and a
GELU is applied where its inputs are made.
"""

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Identity, Linear, Module, Parameter
from transformers.activations import GELUActivation

from medray.models.build import Built
from medray.models.families import ENCODERS
from medray.models.layers import Held, put_back_after, replace_linears

_FOLLOWED = {"dense": "intermediate_act_fn", "lin1": "activation"}  # a linear layer and its activation, in every encoder of the table
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class PackedLinear(Module):
    """In bf16, on a CPU. The operators are those that PyTorch compiles to."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().bfloat16(), None)
        self.bias = None if linear.bias is None else linear.bias.detach().bfloat16()
        self.activation, self.algorithm = "none", ""

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(inputs.bfloat16(), self.packed, self.bias, self.activation, [], self.algorithm)
        return found


def cast(built: Built, precision: Literal["fp32", "bf16", "fp16"]) -> Held:
    """In place. What was there before, for who wants it back."""
    if precision == "fp32":
        return []
    is_whole = precision == "bf16" and built.family.name in ENCODERS
    is_packed = is_whole and next(built.model.parameters()).device.type == "cpu" and multiplies_packed()
    held = _pack(built) if is_packed else []
    for module in list(built.model.modules()):
        if is_whole or isinstance(module, Linear):
            for name, parameter in list(module.named_parameters(recurse=False)):
                held.append((module, name, parameter))
                # Of its own: an output layer may share its weights with the embeddings, which then stay as they are.
                setattr(module, name, Parameter(parameter.detach().to(TYPES[precision]), requires_grad=False))
    return held


def cast_within(built: Built, precision: Literal["fp32", "bf16", "fp16"]) -> AbstractContextManager[None]:
    """The model as `cast` leaves it, and afterwards as it was."""
    return put_back_after(cast(built, precision))


def _pack(built: Built) -> Held:
    held = replace_linears(built, PackedLinear)
    for module in list(built.model.modules()):
        for linear, after in _FOLLOWED.items():
            packed, activation = getattr(module, linear, None), getattr(module, after, None)
            if isinstance(packed, PackedLinear) and isinstance(activation, GELUActivation):
                packed.activation, packed.algorithm = "gelu", "none"  # by erf, not by tanh
                held.append((module, after, activation))
                setattr(module, after, Identity())
    return held


def multiplies_packed() -> bool:
    """Whether this processor multiplies bf16, and PyTorch has oneDNN, which makes use of it."""
    return torch.backends.mkldnn.is_available() and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
