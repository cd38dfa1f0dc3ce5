"""Measures the peak memory of a training step with tensors that have shapes and no contents.

No weight is read and nothing is computed. Every tensor of the step counts from its creation to its
release. So activations, copies by autocast, checkpointing and layers without LoRA count as they
are, in any architecture. A build of PyTorch for CUDA counts CUDA's operators, with or without a
GPU."""

import copy
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Linear, Parameter
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from medray.config.trial import LoraConfig, ModelOptions, Precision
from medray.models import adapter
from medray.models.architecture import needs_for, outline_of, without_dropout
from medray.models.batch import logits_at
from medray.models.device import simulated_arithmetic
from medray.models.families import Family, family_of
from medray.models.frozen_weights import frozen_layers
from medray.types import Needs

_ADAM = 2  # moments per trainable weight
_NF4 = 0.5  # bytes per weight
_EFFICIENT_ATTENTION = 2  # of PyTorch's SDPBackend: a kernel of CUDA that takes any mask
_BLOCK = 64  # weights that share a scale
# bytes per scale: with double quantization 8 bits, and one more scale per 256 of them
_SCALE = {True: 1 + 4 / 256, False: 4.0}


@dataclass(frozen=True)
class Footprint:
    """The memory of one worker, in bytes and weights. `peak` is the maximum during a step."""

    num_parameters: int
    num_linear: int  # of these, the weights that multiply every token
    num_trainable: int
    trained_share: float  # share of the linear weights that gradients pass through
    weights: int
    gradients: int
    moments: int
    peak: int

    @property
    def activations(self) -> int:
        """Return the rest of the peak: values for the backward pass, and temporary ones."""
        return self.peak - self.weights - self.gradients - self.moments


@dataclass(frozen=True)
class Batch:
    """The largest micro-batch: as many rows of the longest length as the token budget allows."""

    rows: int
    length: int
    num_labels: int = 2  # of a head
    answer_tokens: int = 0  # per row, without a head: positions whose logits are computed

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def measure(
    config: Any,
    model: ModelOptions,
    lora: LoraConfig,
    batch: Batch,
    *,
    needs: Needs,
    precision: Precision,
    device: str = "cpu",
    frozen_type: torch.dtype | None = None,
) -> Footprint:
    """Take two steps with the architecture of transformers' `config`, with a device's operators.

    The optimizer's moments exist from the second step on. `frozen_type` is that of frozen layers,
    where it is not the architecture's own."""
    needs = needs_for(config, needs)
    network, family = _build(copy.deepcopy(config), model, lora, batch, needs)
    with FakeTensorMode(), LiveBytes() as live, torch.device(device):
        _fill(network, family, model, frozen_type)
        trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = AdamW(trainable)
        weights = live.now
        for _ in range(2):
            live.most = live.now
            with simulated_arithmetic(precision, device):
                loss = _loss(network, batch, needs)
            loss.backward()
            del loss
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return _footprint(
        network,
        family,
        trainable,
        weights=weights,
        peak=live.most,
        is_quantized=model.quantization != "none",
    )


def _build(
    config: Any, model: ModelOptions, lora: LoraConfig, batch: Batch, needs: Needs
) -> tuple[Any, Family]:
    config = without_dropout(config, model.dropout)
    if needs != "language model":
        config.num_labels, config.use_cache = batch.num_labels, False
    config.pad_token_id = config.pad_token_id or 0
    network = outline_of(config, config.model_type, needs)
    family = family_of(network, config.model_type)
    adapter.freeze(network, model)
    with torch.device("meta"):
        network = adapter.attach(network, family, lora, needs)
    network.train()
    for module in network.modules():
        if hasattr(module, "layerdrop"):
            # It would drop whole layers by a random number, which has no contents here.
            module.training = False
    return network, family


def _fill(
    network: Any, family: Family, model: ModelOptions, frozen_type: torch.dtype | None
) -> None:
    """Create the weights of a network in the counted memory, with its layers in 4 bits where
    requested, and other frozen layers in their type."""
    layers_4bit = _linear_layers(network, family) if model.quantization != "none" else {}
    frozen_ids = set(map(id, frozen_layers(network)))
    parameters: dict[int, Parameter] = {}
    for name, module in network.named_modules():
        for key, tensor in list(module._parameters.items()):
            if tensor is None:
                continue
            if (
                id(tensor) not in parameters
            ):  # the output layer may share the weights of the embeddings
                if name in layers_4bit and key == "weight":
                    size = int(tensor.numel() * (_NF4 + _SCALE[model.double_quantization] / _BLOCK))
                    parameters[id(tensor)] = Parameter(
                        torch.empty(size, dtype=torch.uint8), requires_grad=False
                    )
                else:
                    dtype = (
                        frozen_type if frozen_type and id(module) in frozen_ids else tensor.dtype
                    )
                    parameters[id(tensor)] = Parameter(
                        torch.empty(tensor.shape, dtype=dtype),
                        requires_grad=tensor.requires_grad,
                    )
            module._parameters[key] = parameters[id(tensor)]
        for key, tensor in list(module._buffers.items()):
            if tensor is not None:
                module._buffers[key] = torch.empty(tensor.shape, dtype=tensor.dtype)
    for module in layers_4bit.values():
        module.forward = MethodType(_forward_4bit, module)


def _linear_layers(network: Any, family: Family) -> dict[str, Any]:
    """Return the linear layers of the base model that 4 bits are for."""
    inside = f".{family.layers_path}."
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, Linear)
        and inside in f".{name}"
        and ".lora_" not in name
        and ".original_module" not in name
    }


def _forward_4bit(self: Any, x: Tensor) -> Tensor:
    place = x.device.type
    dtype = torch.get_autocast_dtype(place) if torch.is_autocast_enabled(place) else x.dtype
    bias = None if self.bias is None else self.bias.to(dtype)
    outputs: Tensor = _Linear4bit.apply(x.to(dtype), self.out_features, bias)
    return outputs


class _Linear4bit(torch.autograd.Function):
    """A layer in 4 bits. Forward and backward pass unpack its weights for one product, and store
    nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, out_features: int, bias: Tensor | None) -> Tensor:
        ctx.sizes = (out_features, x.shape[-1])
        return F.linear(x, x.new_empty(ctx.sizes), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ gradient.new_empty(ctx.sizes), None, None


def _loss(network: Any, batch: Batch, needs: Needs) -> Tensor:
    inputs: Mapping[str, Tensor] = {
        name: torch.ones((batch.rows, batch.length), dtype=torch.long)
        for name in ("input_ids", "attention_mask")
    }
    if needs == "head":
        return F.cross_entropy(
            network(**inputs).logits.float(), torch.zeros(batch.rows, dtype=torch.long)
        )
    if needs == "token head":
        return F.cross_entropy(
            network(**inputs).logits.float().flatten(0, 1),
            torch.zeros(batch.rows * batch.length, dtype=torch.long),
        )
    rows = [row for row in range(batch.rows) for _ in range(batch.answer_tokens)]
    places = [
        batch.length - 1 - number
        for _ in range(batch.rows)
        for number in range(batch.answer_tokens)
    ]
    logits = logits_at(network, inputs, rows, places)
    return F.cross_entropy(logits.float(), torch.zeros(len(rows), dtype=torch.long))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live storages, and their maximum since `most` was set."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._fused_sdp_choice.default and args[0].device.type == "cuda":
            return _EFFICIENT_ATTENTION
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._storages:
            return
        self._storages.add(key)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.now -= size


def _footprint(
    network: Any,
    family: Family,
    trainable: list[Parameter],
    *,
    weights: int,
    peak: int,
    is_quantized: bool,
) -> Footprint:
    layers = _linear_layers(network, family)
    sizes = {name: module.in_features * module.out_features for name, module in layers.items()}
    num_linear = sum(sizes.values())
    first = min(
        (_number(name, family) for name, _ in network.named_parameters() if ".lora_" in name),
        default=0,
    )
    with_gradients = sum(size for name, size in sizes.items() if _number(name, family) >= first)
    shapes = (
        parameter.numel()
        for name, parameter in network.named_parameters()
        if ".original_module." not in name and parameter.dtype != torch.uint8
    )
    num_trainable = sum(parameter.numel() for parameter in trainable)
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in trainable)
    return Footprint(
        num_parameters=sum(shapes) + (num_linear if is_quantized else 0),
        num_linear=num_linear,
        num_trainable=num_trainable,
        trained_share=with_gradients / num_linear if num_linear else 1.0,
        weights=weights,
        gradients=num_bytes,
        moments=_ADAM * num_bytes,
        peak=peak,
    )


def _number(name: str, family: Family) -> int:
    """Return the number of the layer of a module or weight."""
    return int(name.split(f"{family.layers_path}.", 1)[1].split(".", 1)[0])
