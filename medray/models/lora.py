"""Faster LoRA layers for CPUs and GPUs: PEFT's layers cast their inputs several times. On a CPU,
PyTorch's dropout draws a double per number."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Dropout, Identity, Module

from medray.models.libraries import LoraLayer, LoraLinear

_STEPS = 1 << 16  # values of 16 bits; a random number of 64 bits decides about four inputs


def quicken(network: Module) -> None:
    """Replace every adapter's layers in place. Special adapters keep PEFT's computation."""
    for layer in [module for module in network.modules() if isinstance(module, LoraLayer)]:
        if type(layer) is LoraLinear:
            layer.__class__ = QuickLinear
        elif hasattr(getattr(layer.base_layer, "weight", None), "quant_state"):
            layer.__class__ = _quick_4bit(type(layer))  # type: ignore[arg-type]  # mypy: no Hashable
        for name, dropout in list(layer.lora_dropout.items()):
            if isinstance(dropout, Dropout):
                layer.lora_dropout[name] = QuickDropout(dropout.p)


def dropout_mask(like: Tensor, share: float) -> Tensor:
    """Return a mask with 0 for a share of the numbers, and 1 for the others. A GPU's is of bools,
    which take one byte and cost it no cast."""
    if like.device.type != "cpu":
        return torch.empty_like(like, dtype=torch.bool).bernoulli_(1 - share)
    numbers = (
        torch.empty(-(-like.numel() // 4), dtype=torch.int64)
        .random_(-(1 << 63), None)
        .view(torch.int16)
    )
    numbers = numbers[: like.numel()].view(like.shape)
    return torch.ge(
        numbers, round(share * _STEPS) - _STEPS // 2, out=torch.empty(like.shape, dtype=like.dtype)
    )  # a bool is slow to cast


class QuickDropout(Dropout):
    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or not self.p or inputs.device.type != "cpu":
            return super().forward(inputs)
        return inputs * dropout_mask(inputs, self.p).mul_(1 / (1 - self.p))


class _Quick(Module):
    """Casts once for layer and adapter, and scales and adds in one product."""

    devices: tuple[str, ...] = ("cpu", "cuda")
    # what PEFT's layers have
    base_layer: Any
    lora_A: Any
    lora_B: Any
    lora_dropout: Any
    lora_variant: Any
    scaling: Any
    active_adapters: Any
    disable_adapters: bool
    merged: bool

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged or args or kwargs or not self._is_plain(x):
            return super().forward(x, *args, **kwargs)  # type: ignore[misc,no-any-return]
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        (name,) = self.active_adapters
        dropout = self.lora_dropout[name]
        share = dropout.p if self.training and isinstance(dropout, Dropout) else 0.0
        outputs: Tensor = _LoraProduct.apply(
            x,
            self.base_layer(x),
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            float(self.scaling[name]),
            share,
        )
        return outputs

    def _is_plain(self, x: Tensor) -> bool:
        if (
            x.device.type not in self.devices
            or len(self.active_adapters) != 1
            or self.active_adapters[0] not in self.lora_A
        ):
            return False
        name = self.active_adapters[0]
        down, up = self.lora_A[name], self.lora_B[name]
        # ZeRO-3 gathers a weight only when its module is called
        is_whole = not hasattr(down.weight, "ds_id")
        is_one_type = (
            torch.is_autocast_enabled(x.device.type)
            or x.dtype == down.weight.dtype == self.base_layer.weight.dtype
        )
        is_vanilla = name not in self.lora_variant and isinstance(
            self.lora_dropout[name], (Dropout, Identity)
        )
        return is_whole and is_one_type and is_vanilla and down.bias is None and up.bias is None


class QuickLinear(_Quick, LoraLinear):  # type: ignore[misc]  # PEFT's are untyped
    pass


@cache
def _quick_4bit(kind: type) -> type:
    """Return the quick layer over PEFT's layer in 4 bits, whose module imports bitsandbytes. Its
    results on a CPU stay those of PEFT."""
    return type("QuickLinear4bit", (_Quick, kind), {"devices": ("cuda",)})


class _LoraProduct(torch.autograd.Function):
    """Computes result + up(down(dropout(x))) * scaling."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, result: Tensor, down: Tensor, up: Tensor, scaling: float, share: float
    ) -> Tensor:
        rows, keeps = x.reshape(-1, x.shape[-1]), None
        if share:
            keeps = dropout_mask(rows, share)
            rows, scaling = rows * keeps, scaling / (1 - share)
        inner = rows @ down.to(rows.dtype).t()
        ctx.save_for_backward(rows, keeps, inner, down, up)
        ctx.scaling = scaling
        return torch.addmm(
            result.reshape(-1, result.shape[-1]), inner, up.to(rows.dtype).t(), alpha=scaling
        ).view(result.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, keeps, inner, down, up = ctx.saved_tensors
        outer = grads[0].reshape(-1, grads[0].shape[-1])
        inner_grad = (outer @ up.to(outer.dtype)).mul_(ctx.scaling)
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = inner_grad @ down.to(outer.dtype)
            x_grad = (x_grad if keeps is None else x_grad.mul_(keeps)).view(
                *grads[0].shape[:-1], -1
            )
        down_grad = (inner_grad.t() @ rows).to(down.dtype)
        up_grad = (outer.t() @ inner).to(up.dtype).mul_(ctx.scaling)
        return x_grad, grads[0], down_grad, up_grad, None, None
