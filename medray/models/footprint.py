"""What a training step holds at most, found by taking it with tensors that have shapes and no
contents: no weight is read, nothing is computed.

Every tensor that the step makes is counted from its birth to its death, so what is kept for the
backward pass, copies that autocast makes, checkpointing and the layers that LoRA leaves out all
count as they are, in any architecture."""

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

from medray.config.study import LoraConfig, ModelOptions, Precision
from medray.models import adapter
from medray.models.architecture import outline_of, without_dropout
from medray.models.batch import logits_at
from medray.models.families import Family, family_of
from medray.models.precision import arithmetic
from medray.types import Needs

_ADAM = 2  # figures that it keeps for each trained weight
_PACKED = 0.5  # bytes of a weight in nf4
_BLOCK = 64  # weights that share a scale
_SCALE = {
    True: 1 + 4 / 256,
    False: 4.0,
}  # bytes of it: with double quantization, in 8 bits with a scale of their own for 256


@dataclass(frozen=True)
class Footprint:
    """Of one worker, in bytes and weights. `peak` holds all of it at the worst moment of a step."""

    num_parameters: int
    num_linear: int  # of these, weights that every token is multiplied with
    num_trainable: int
    trained_share: float  # of the linear weights, that gradients pass through
    weights: int
    gradients: int
    moments: int
    peak: int

    @property
    def activations(self) -> int:
        """What the rest of the peak is: kept for the backward pass, or in the making."""
        return self.peak - self.weights - self.gradients - self.moments


@dataclass(frozen=True)
class Batch:
    """The largest micro-batch: as many rows of the longest length as the token budget allows."""

    rows: int
    length: int
    num_labels: int = 2  # of a head
    answer_tokens: int = 0  # of each row, where there is none: places whose logits are made

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
) -> Footprint:
    """Take two steps with the architecture of transformers' `config`: moments are there from the
    second on."""
    built, family = _built(copy.deepcopy(config), model, lora, batch, needs)
    with FakeTensorMode(), _Live() as live:
        _fill(built, family, model)
        trained = [parameter for parameter in built.parameters() if parameter.requires_grad]
        optimizer = AdamW(trained)
        weights = live.now
        for _ in range(2):
            live.most = live.now
            with arithmetic(precision, "cpu"):
                loss = _loss(built, batch, needs)
            loss.backward()
            del loss
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return _told(
        built,
        family,
        trained,
        weights=weights,
        peak=live.most,
        quantised=model.quantization != "none",
    )


def _built(
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
        built = adapter.attach(network, family, lora, needs)
    built.train()
    for module in built.modules():
        if hasattr(module, "layerdrop"):
            # it would draw a number to drop whole layers by, and a number without contents decides
            # nothing
            module.training = False
    return built, family


def _fill(built: Any, family: Family, model: ModelOptions) -> None:
    """Put weights with a place in the counted memory where the architecture has none; layers of the
    base in 4 bits where asked for."""
    packed = _linear_layers(built, family) if model.quantization != "none" else {}
    made: dict[int, Parameter] = {}
    for name, module in built.named_modules():
        for key, held in list(module._parameters.items()):
            if held is None:
                continue
            if id(held) not in made:  # an output layer may share the embeddings' weights
                if name in packed and key == "weight":
                    size = int(
                        held.numel() * (_PACKED + _SCALE[model.double_quantization] / _BLOCK)
                    )
                    made[id(held)] = Parameter(
                        torch.empty(size, dtype=torch.uint8), requires_grad=False
                    )
                else:
                    made[id(held)] = Parameter(
                        torch.empty(held.shape, dtype=held.dtype), requires_grad=held.requires_grad
                    )
            module._parameters[key] = made[id(held)]
        for key, held in list(module._buffers.items()):
            if held is not None:
                module._buffers[key] = torch.empty(held.shape, dtype=held.dtype)
    for module in packed.values():
        module.forward = MethodType(_packed_forward, module)


def _linear_layers(built: Any, family: Family) -> dict[str, Any]:
    """What 4 bits are for: linear layers of the base inside its layers."""
    inside = f".{family.layers_path}."
    return {
        name: module
        for name, module in built.named_modules()
        if isinstance(module, Linear)
        and inside in f".{name}"
        and ".lora_" not in name
        and ".original_module" not in name
    }


def _packed_forward(self: Any, x: Tensor) -> Tensor:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    bias = None if self.bias is None else self.bias.to(dtype)
    found: Tensor = _Packed.apply(x.to(dtype), self.out_features, bias)
    return found


class _Packed(torch.autograd.Function):
    """A layer in 4 bits: its weights are unpacked for the length of a product, forwards and
    backwards, and nothing is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, out_features: int, bias: Tensor | None) -> Tensor:
        ctx.sizes = (out_features, x.shape[-1])
        return F.linear(x, x.new_empty(ctx.sizes), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ gradient.new_empty(ctx.sizes), None, None


def _loss(built: Any, batch: Batch, needs: Needs) -> Tensor:
    inputs: Mapping[str, Tensor] = {
        name: torch.ones((batch.rows, batch.length), dtype=torch.long)
        for name in ("input_ids", "attention_mask")
    }
    if needs == "head":
        return F.cross_entropy(
            built(**inputs).logits.float(), torch.zeros(batch.rows, dtype=torch.long)
        )
    if needs == "token head":
        return F.cross_entropy(
            built(**inputs).logits.float().flatten(0, 1),
            torch.zeros(batch.rows * batch.length, dtype=torch.long),
        )
    rows = [row for row in range(batch.rows) for _ in range(batch.answer_tokens)]
    places = [
        batch.length - 1 - number
        for _ in range(batch.rows)
        for number in range(batch.answer_tokens)
    ]
    logits = logits_at(built, inputs, rows, places)
    return F.cross_entropy(logits.float(), torch.zeros(len(rows), dtype=torch.long))


class _Live(TorchDispatchMode):
    """Bytes of all storages that are alive, and the most that were since `most` was set."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _told(
    built: Any,
    family: Family,
    trained: list[Parameter],
    *,
    weights: int,
    peak: int,
    quantised: bool,
) -> Footprint:
    layers = _linear_layers(built, family)
    sizes = {name: module.in_features * module.out_features for name, module in layers.items()}
    num_linear = sum(sizes.values())
    first = min(
        (_number(name, family) for name, _ in built.named_parameters() if ".lora_" in name),
        default=0,
    )
    passed = sum(size for name, size in sizes.items() if _number(name, family) >= first)
    shapes = (
        parameter.numel()
        for name, parameter in built.named_parameters()
        if ".original_module." not in name and parameter.dtype != torch.uint8
    )
    trainable = sum(parameter.numel() for parameter in trained)
    held = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    return Footprint(
        num_parameters=sum(shapes) + (num_linear if quantised else 0),
        num_linear=num_linear,
        num_trainable=trainable,
        trained_share=passed / num_linear if num_linear else 1.0,
        weights=weights,
        gradients=held,
        moments=_ADAM * held,
        peak=peak,
    )


def _number(name: str, family: Family) -> int:
    """Of the layer that a module or weight lies in."""
    return int(name.split(f"{family.layers_path}.", 1)[1].split(".", 1)[0])
