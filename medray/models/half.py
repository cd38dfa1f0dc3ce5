"""Linear layers in half precision, for a model that only answers: weights are cast once, and a CPU multiplies few numbers of rows.

PyTorch compiles a product in half precision for every number of rows, which takes a CPU longer than the product, and forgets it when
there are too many. Batches of a server hardly ever have the same number, so a few more rows are multiplied than there are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Parameter

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def cast(model: Any, precision: str) -> Iterator[None]:
    """The model as `cast_linears` leaves it, and afterwards as it was."""
    held = [(module, type(module), module.weight, module.bias) for module in model.modules() if isinstance(module, Linear)]
    try:
        cast_linears(model, precision)
        yield
    finally:
        for module, kind, weight, bias in held:
            module.__class__, module.weight, module.bias = kind, weight, bias


def cast_linears(model: Any, precision: str) -> None:
    """What autocast would do at every call, once: the same numbers in less time, above all where one token is read.

    Each gets weights of its own: an output layer may share them with the embeddings, where what flows between layers would be rounded.
    """
    if precision not in TYPES:
        return
    for module in model.modules():
        if isinstance(module, Linear):
            module.weight = _as(module.weight, precision)
            module.bias = None if module.bias is None else _as(module.bias, precision)
            if type(module) is Linear and module.weight.device.type == "cpu":
                module.__class__ = _FewSizes


def _as(parameter: Tensor, precision: str) -> Parameter:
    return Parameter(parameter.detach().to(TYPES[precision]), requires_grad=False)


def rounded(num_rows: int) -> int:
    """As many, or a few more."""
    step = 1 if num_rows <= 32 else 16 if num_rows <= 256 else 64
    return -(-num_rows // step) * step


class _FewSizes(Linear):
    def forward(self, input: Tensor) -> Tensor:
        num = input.numel() // self.in_features
        if num == (wanted := rounded(num)):
            return super().forward(input)
        rows = input.new_empty((wanted, self.in_features), dtype=self.weight.dtype)
        rows[:num] = input.reshape(num, self.in_features)
        rows[num:] = 0
        return super().forward(rows)[:num].view(*input.shape[:-1], self.out_features)
