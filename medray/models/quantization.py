"""Frozen linear layers in 4 bits (nf4) and back again. The one file that knows bitsandbytes;
nothing here knows LoRA's training."""

import re
from importlib.util import find_spec
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter

from medray.config.study import ModelOptions
from medray.errors import ConfigError
from medray.models.families import Family
from medray.models.libraries import LoraLinear, base_of

_NEEDED = (
    "bitsandbytes",
    "accelerate",
)  # transformers quantises with the one and places weights with the other


def check(model: ModelOptions) -> list[str]:
    """What this machine lacks for what is asked, without importing it."""
    lacking = (
        [name for name in _NEEDED if find_spec(name) is None] if model.quantization == "nf4" else []
    )
    if not lacking:
        return []
    return [
        (
            f"model.quantization: nf4 needs {' and '.join(lacking)}, not installed here: pip "
            "install 'medray[qlora]', or quantization: none"
        )
    ]


def settings(model: ModelOptions, family: Family, outline: Module) -> dict[str, Any]:
    """What `from_pretrained` needs to quantise weight by weight as it reads them. `outline` is the
    model without weights.

    Quantised is what LoRA could adapt, the linear layers inside the layers: heads, poolers and
    output embeddings stay as they are."""
    wrong = check(model)
    if wrong:
        raise ConfigError(wrong[0])
    from transformers import BitsAndBytesConfig

    outside = [
        name
        for name, module in outline.named_modules()
        if isinstance(module, Linear) and not name.startswith(f"{family.layers_path}.")
    ]
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=model.double_quantization,
        bnb_4bit_compute_dtype=torch.float32,
        # They are matched as patterns, by their beginnings and ends too: "score" would leave out
        # "layers.0.score" as well.
        llm_int8_skip_modules=[f"^{re.escape(name)}$" for name in outside],
    )
    return {"quantization_config": config, "device_map": {"": "cpu"}}


def settle(network: Module) -> None:
    """Have 4-bit layers compute in the arithmetic around them, and leave their weights as they
    are."""
    for module in quantised_layers(network).values():
        # On a CPU with avx512-bf16, bitsandbytes 0.50 repacks weights in the first forward of an
        # evaluation, and training goes on without gradients through them. `_forward` does not
        # repack; this says it to any other caller.
        module.support_avx512bf16_for_cpu = False
        module.forward = MethodType(_forward, module)


def num_weights(parameter: Tensor) -> int:
    """Of the layer, where two of them share a byte."""
    packed = getattr(parameter, "quant_state", None)
    return packed.shape.numel() if packed is not None else parameter.numel()


def dequantise(model: Any) -> Any:
    """Plain linear layers with the same weights, in fp32 and in place, under LoRA layers too; no
    sign of 4 bits is left."""
    if not getattr(model, "is_loaded_in_4bit", False):
        return model
    from bitsandbytes.functional import dequantize_4bit
    from peft.tuners.lora.bnb import Linear4bit as QuantisedLoraLinear

    for name, module in quantised_layers(model).items():
        plain = Linear(
            module.in_features, module.out_features, bias=module.bias is not None, device="meta"
        )
        plain.weight = Parameter(
            dequantize_4bit(module.weight.data, module.weight.quant_state).float(),
            requires_grad=False,
        )
        plain.bias = module.bias
        model.set_submodule(name, plain)
    for module in model.modules():
        if isinstance(module, QuantisedLoraLinear):  # merging, it would quantise the sum again
            module.__class__ = LoraLinear
    network = base_of(model)
    network.hf_quantizer.remove_quantization_config(network)
    network.is_loaded_in_4bit = False
    return model


def quantised_layers(model: Module) -> dict[str, Any]:
    from bitsandbytes.nn import Linear4bit

    return {
        name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)
    }


def _forward(self: Any, x: Tensor) -> Tensor:
    """As a plain linear layer under autocast. bitsandbytes' own keeps to one type from the first
    call on, and rounds the bias to it."""
    from bitsandbytes import matmul_4bit

    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    bias = None if self.bias is None else self.bias.to(dtype)
    return matmul_4bit(x.to(dtype), self.weight, quant_state=self.weight.quant_state, bias=bias)
