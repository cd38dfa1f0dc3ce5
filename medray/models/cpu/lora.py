"""LoRA's layers on a CPU, with fewer passes over the numbers: PEFT's cast them to and fro, and
PyTorch's dropout draws a double for each."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Dropout, Identity, Module

from medray.models.libraries import LoraLayer, LoraLinear

_STEPS = 1 << 16  # a quarter of a drawn number decides over each


def quicken(adapted: Module) -> None:
    """In place: every adapter. On other devices, and where an adapter is not a plain one, all is as
    PEFT has it."""
    for layer in [module for module in adapted.modules() if isinstance(module, LoraLayer)]:
        if type(layer) is LoraLinear:
            layer.__class__ = QuickLinear
        for name, dropout in list(layer.lora_dropout.items()):
            if isinstance(dropout, Dropout):
                layer.lora_dropout[name] = QuickDropout(dropout.p)


def kept(like: Tensor, share: float) -> Tensor:
    """0 for the share that is left out, and 1 for the others."""
    drawn = (
        torch.empty(-(-like.numel() // 4), dtype=torch.int64)
        .random_(-(1 << 63), None)
        .view(torch.int16)
    )
    drawn = drawn[: like.numel()].view(like.shape)
    return torch.ge(
        drawn, round(share * _STEPS) - _STEPS // 2, out=torch.empty(like.shape, dtype=like.dtype)
    )  # a bool is slow to cast


class QuickDropout(Dropout):
    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or not self.p or inputs.device.type != "cpu":
            return super().forward(inputs)
        return inputs * kept(inputs, self.p).mul_(1 / (1 - self.p))


class QuickLinear(LoraLinear):  # type: ignore[misc]  # PEFT's are untyped
    """One cast for the layer and its adapter, which one product scales and adds."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged or args or kwargs or not self._is_plain(x):
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        (name,) = self.active_adapters
        dropout = self.lora_dropout[name]
        share = dropout.p if self.training and isinstance(dropout, Dropout) else 0.0
        found: Tensor = _Adapted.apply(
            x,
            self.base_layer(x),
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            float(self.scaling[name]),
            share,
        )
        return found

    def _is_plain(self, x: Tensor) -> bool:
        if (
            x.device.type != "cpu"
            or len(self.active_adapters) != 1
            or self.active_adapters[0] not in self.lora_A
        ):
            return False
        name = self.active_adapters[0]
        down, up = self.lora_A[name], self.lora_B[name]
        is_whole = not hasattr(
            down.weight, "ds_id"
        )  # ZeRO-3 brings a weight together when its module is called
        is_one_type = (
            torch.is_autocast_enabled("cpu")
            or x.dtype == down.weight.dtype == self.base_layer.weight.dtype
        )
        is_vanilla = name not in self.lora_variant and isinstance(
            self.lora_dropout[name], (Dropout, Identity)
        )
        return is_whole and is_one_type and is_vanilla and down.bias is None and up.bias is None


class _Adapted(torch.autograd.Function):
    """result + up(down(dropout(x))) * scaling."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, result: Tensor, down: Tensor, up: Tensor, scaling: float, share: float
    ) -> Tensor:
        rows, keeps = x.reshape(-1, x.shape[-1]), None
        if share:
            keeps = kept(rows, share)
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
