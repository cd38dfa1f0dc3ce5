"""Converts frozen linear layers to 4 bits (nf4) and back. The only file that uses bitsandbytes."""

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Linear, Module, Parameter

from medray.config import environment
from medray.config.trial import ModelOptions
from medray.errors import ConfigError, MedrayError
from medray.models.families import Family
from medray.models.libraries import LoraLinear, base_of
from medray.storage import files
from medray.types import Needs

log = logging.getLogger(__name__)
# transformers quantizes with bitsandbytes, and places weights with accelerate
_PACKAGES = ("bitsandbytes", "accelerate")
_FORMAT = 2  # of packed weights; raise it where they change, so that old folders are not used
_WEIGHTS, _NOTE, _GENERATION = "model.safetensors", "packed.json", "generation_config.json"


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
    """Return the options of `from_pretrained` that quantize weights while it reads them.

    `outline` is the model without weights. The linear layers inside the list of layers are
    quantized; heads, poolers and output embeddings are not."""
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


def packed_dir(weight_hash: str, needs: Needs, model: ModelOptions) -> Path:
    """Return the folder of a base model's packed weights on this machine, without its head."""
    versions = [metadata.version(name) for name in ("bitsandbytes", "transformers")]
    parts = (weight_hash, needs, str(model.double_quantization), *versions, str(_FORMAT))
    return environment.cache_dir() / "bases" / f"nf4-{files.hash_text(parts)[:32]}"


@contextmanager
def packing(folder: Path) -> Iterator[bool]:
    """Yield whether a folder has packed weights. If it has none, hold its lock in the block, so
    that one process of this machine quantizes and the others read the result."""
    if _is_packed(folder):
        yield True
        return
    locks = environment.cache_dir() / "locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError:  # without a cache, each load quantizes
        yield False
        return
    with FileLock(locks / f"{folder.name}.lock"):
        yield _is_packed(folder)


def _is_packed(folder: Path) -> bool:
    try:
        digest = json.loads((folder / _NOTE).read_bytes())["hash"]
        if files.hash_once(folder / _WEIGHTS) == digest:
            return True
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError) as err:
        log.warning("%s: cannot be read (%s); the base model is quantized again", folder, err)
        return False
    log.warning("%s: does not match its hash; the base model is quantized again", folder)
    return False


def pack(weights: Mapping[str, Tensor], source: Path, folder: Path) -> None:
    """Store the weights of a network in 4 bits, for later loads. A failure only costs time then.

    Quantizing a model of 7 billion weights takes minutes of CPU time. Reading takes seconds."""
    matrices: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if tensor.ndim == 1:
            tensor = tensor.clone()  # all layers share the values of the 4 bits
        elif tensor.data_ptr() in matrices:
            continue  # of embeddings, which transformers ties at a load
        matrices.add(tensor.data_ptr())
        plain[name] = _smallest(tensor).contiguous()
    try:
        files.remove(folder)
        with files.new_folder(folder) as filling:
            save_file(plain, str(filling / _WEIGHTS), metadata={"format": "pt"})
            if (source / _GENERATION).is_file():
                shutil.copy(source / _GENERATION, filling / _GENERATION)
            note = {"hash": files.hash_file(filling / _WEIGHTS)}
            (filling / _NOTE).write_text(json.dumps(note), encoding="utf-8")
    except (OSError, RuntimeError, MedrayError) as err:
        log.warning("%s: cannot store the weights in 4 bits: %s", folder, err)


def _smallest(tensor: Tensor) -> Tensor:
    """Return a tensor in bf16 where that loses nothing, as in models that are published in bf16.

    Vectors stay as they are: bitsandbytes reads its scales as fp32 whatever their type is."""
    if tensor.dtype != torch.float32 or tensor.ndim == 1:
        return tensor
    half = tensor.bfloat16()
    return half if torch.equal(half.float(), tensor) else tensor


def settle(network: Module) -> None:
    """Make 4-bit layers compute in the precision around them, and keep their weights unchanged."""
    for module in layers_4bit(network).values():
        # On a CPU with avx512-bf16, bitsandbytes 0.50 repacks weights in the first forward pass of
        # an evaluation, and training then has no gradients through them. `_forward` does not
        # repack; the flag is for any other caller.
        module.support_avx512bf16_for_cpu = False
        module.forward = MethodType(_forward, module)


def unpack_gradients_to(network: Module, dtype: torch.dtype) -> None:
    """Let the backward pass unpack 4-bit weights in this type. It would unpack them in fp32, and
    then cast them; the forward pass uses the type of its inputs (bitsandbytes 0.50)."""
    for module in layers_4bit(network).values():
        module.weight.quant_state.dtype = dtype


def num_weights(parameter: Tensor) -> int:
    """Return the number of weights of a parameter. In 4 bits, two of them share a byte."""
    quantization = getattr(parameter, "quant_state", None)
    return quantization.shape.numel() if quantization is not None else parameter.numel()


def dequantize(model: Any, name: str) -> None:
    """Replace a 4-bit layer in place by a plain linear layer in fp32, under a LoRA layer too."""
    from bitsandbytes.functional import dequantize_4bit
    from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit

    module, above = model.get_submodule(name), model.get_submodule(name.rpartition(".")[0])
    plain = Linear(
        module.in_features, module.out_features, bias=module.bias is not None, device="meta"
    )
    module.weight.quant_state.dtype = torch.float32  # see `unpack_gradients_to`
    plain.weight = Parameter(
        dequantize_4bit(module.weight.data, module.weight.quant_state).float(),
        requires_grad=False,
    )
    plain.bias = module.bias
    model.set_submodule(name, plain)
    if isinstance(above, LoraLinear4bit):  # otherwise merging would quantize the sum again
        above.__class__ = LoraLinear


def settle_plain(model: Any) -> None:
    """Remove what says that a model has layers in 4 bits, after the last one is replaced."""
    network = base_of(model)
    if getattr(network, "is_loaded_in_4bit", False):
        network.hf_quantizer.remove_quantization_config(network)
        network.is_loaded_in_4bit = False


def layers_4bit(model: Any) -> dict[str, Any]:
    if not getattr(base_of(model), "is_loaded_in_4bit", False):
        return {}
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
