"""Converts frozen linear layers to 4 bits (nf4) and back. The only file that uses bitsandbytes."""

import re
from importlib.util import find_spec
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter

from medray.config.trial import ModelOptions
from medray.errors import ConfigError
from medray.models.families import Family
from medray.models.libraries import LoraLinear, base_of

# transformers quantises with bitsandbytes, and places weights with accelerate
_PACKAGES = ("bitsandbytes", "accelerate")


def check(model: ModelOptions) -> list[str]:
    """Return the packages that this machine lacks, as sentences, without importing them."""
    lacking = (
        [name for name in _PACKAGES if find_spec(name) is None]
        if model.quantization == "nf4"
        else []
    )
    if not lacking:
        return []
    return [
        (
            f"model.quantization: nf4 needs {' and '.join(lacking)}, not installed here; pip "
            "install 'medray[qlora]', or set quantization: none"
        )
    ]


def settings(model: ModelOptions, family: Family, outline: Module) -> dict[str, Any]:
    """Return the options of `from_pretrained` that quantise weights while it reads them.

    `outline` is the model without weights. The linear layers inside the list of layers are
    quantised; heads, poolers and output embeddings are not."""
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
        # transformers takes them as patterns for beginnings and ends of names too: "score" would
        # also match "layers.0.score".
        llm_int8_skip_modules=[f"^{re.escape(name)}$" for name in outside],
    )
    return {"quantization_config": config, "device_map": {"": "cpu"}}


def settle(network: Module) -> None:
    """Make 4-bit layers compute in the precision around them, and keep their weights unchanged."""
    for module in quantised_layers(network).values():
        # On a CPU with avx512-bf16, bitsandbytes 0.50 repacks weights in the first forward pass of
        # an evaluation, and training then has no gradients through them. `_forward` does not
        # repack; the flag is for any other caller.
        module.support_avx512bf16_for_cpu = False
        module.forward = MethodType(_forward, module)


def num_weights(parameter: Tensor) -> int:
    """Return the number of weights of a parameter. In 4 bits, two of them share a byte."""
    quantization = getattr(parameter, "quant_state", None)
    return quantization.shape.numel() if quantization is not None else parameter.numel()


def dequantise(model: Any) -> Any:
    """Replace 4-bit layers in place by plain linear layers in fp32, under LoRA layers too."""
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
        if isinstance(
            module, QuantisedLoraLinear
        ):  # otherwise merging would quantise the sum again
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
    """Compute like a plain linear layer under autocast.

    bitsandbytes' own method keeps the type of the first call and rounds the bias to it."""
    from bitsandbytes import matmul_4bit

    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    bias = None if self.bias is None else self.bias.to(dtype)
    return matmul_4bit(x.to(dtype), self.weight, quant_state=self.weight.quant_state, bias=bias)
