"""LoRA's dropout on a CPU. PyTorch's own draws a double for every number there, one after the other: a quarter of a training step."""

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn import Dropout, Module

_STEPS = 1 << 16  # a quarter of a drawn number decides over each


def quicken(adapted: Module) -> None:
    """In place: every dropout of an adapter."""
    for layer in [module for module in adapted.modules() if isinstance(module, LoraLayer)]:
        for name, dropout in list(layer.lora_dropout.items()):
            if isinstance(dropout, Dropout):
                layer.lora_dropout[name] = QuickDropout(dropout.p)


class QuickDropout(Dropout):
    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or not self.p or inputs.device.type != "cpu":
            return super().forward(inputs)
        drawn = torch.empty(-(-inputs.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None).view(torch.int16)
        keeps = drawn[: inputs.numel()].view(inputs.shape) >= round(self.p * _STEPS) - _STEPS // 2
        return inputs * keeps.to(inputs.dtype).mul_(1 / (1 - self.p))
