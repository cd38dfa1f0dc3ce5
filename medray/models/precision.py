"""fp32, bf16 and fp16: their types, what a processor multiplies fast, the choice by timing, and
weights cast once for serving.

`arithmetic` leaves weights as they are. `cast` casts the weights of a merged model, as autocast
would at every call. Between the layers of a language model numbers stay in fp32, so its results are
autocast's. An encoder in bf16 computes wholly in bf16, which rounds a little more; on a CPU its
weights are laid out for the product once, and a GELU is applied where its inputs are made."""

import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.nn import Identity, Linear, Module, Parameter
from transformers.activations import GELUActivation

from medray.config.study import Precision, PrecisionChoice
from medray.models.families import ENCODERS, Family
from medray.storage import files
from medray.storage.checkpoint import PrecisionRecord

log = logging.getLogger(__name__)
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_ACTIVATIONS = {
    "dense": "intermediate_act_fn",
    "lin1": "activation",
}  # of a linear layer, in every encoder of the table
_PATIENCE_S = 600  # for another trial that times
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 12
_MOST_S = 30.0  # of timing that is not clear
_CLOSE = 1.1  # where bf16 is not faster by as much, trials are in fp32
Originals = list[
    tuple[Module, str, Any]
]  # a module, the name of a part of it, and that part before the cast


def dtype_name(precision: Precision) -> str:
    """The name that torch, DeepSpeed and vLLM give the type."""
    return str(DTYPES[precision]).removeprefix("torch.")


def untimed(choice: PrecisionChoice) -> Precision:
    """The precision where nothing is timed: `auto` is fp32."""
    return "fp32" if choice == "auto" else choice


def fast_precision(device: str) -> Precision:
    """bf16 where the hardware multiplies it."""
    return (
        "bf16"
        if device == "cuda" or _has_avx512_bf16() or torch.cpu._is_amx_tile_supported()
        else "fp32"
    )


def multiplies_packed() -> bool:
    """Whether this processor multiplies bf16, and PyTorch has oneDNN, which makes use of it."""
    return torch.backends.mkldnn.is_available() and _has_avx512_bf16()


def _has_avx512_bf16() -> bool:
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def arithmetic(precision: Precision, device: str) -> AbstractContextManager[object]:
    """The context to compute in. Weights stay as they are: casting them per call costs less than 1
    % of a micro-batch."""
    return arithmetic_of(precision, device)()


def arithmetic_of(
    precision: Precision, device: str
) -> Callable[[], AbstractContextManager[object]]:
    """What makes that context anew for each call, for an engine that computes in one precision."""
    return (
        nullcontext
        if precision == "fp32"
        else partial(torch.autocast, device, dtype=DTYPES[precision])
    )


class PackedLinear(Module):
    """In bf16, on a CPU. The operators are those that PyTorch compiles to."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(
            linear.weight.detach().bfloat16(), None
        )
        self.bias = None if linear.bias is None else linear.bias.detach().bfloat16()
        self.activation, self.algorithm = "none", ""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs.bfloat16(), self.packed, self.bias, self.activation, [], self.algorithm
        )
        return outputs


def cast(model: Any, family: Family, precision: Precision) -> Originals:
    """Convert weights and layers in place, and return the originals."""
    if precision == "fp32":
        return []
    is_whole = precision == "bf16" and family.name in ENCODERS
    is_packed = is_whole and next(model.parameters()).device.type == "cpu" and multiplies_packed()
    originals = _pack(model, family) if is_packed else []
    for module in list(model.modules()):
        if is_whole or isinstance(module, Linear):
            for name, parameter in list(module.named_parameters(recurse=False)):
                originals.append((module, name, parameter))
                # Of its own: an output layer may share its weights with the embeddings, which then
                # stay as they are.
                setattr(
                    module,
                    name,
                    Parameter(parameter.detach().to(DTYPES[precision]), requires_grad=False),
                )
    return originals


@contextmanager
def cast_within(model: Any, family: Family, precision: Precision) -> Iterator[None]:
    """The model as `cast` leaves it, and afterwards as it was."""
    originals = cast(model, family, precision)
    try:
        yield
    finally:
        for module, name, part in originals:
            setattr(module, name, part)


def _pack(model: Any, family: Family) -> Originals:
    """Replace the linear layers that LoRA adapts, not those of the head, and the activations behind
    them."""
    layers = model.get_submodule(family.layers_path)
    originals: Originals = []
    for name, linear in [
        (name, module) for name, module in layers.named_modules() if isinstance(module, Linear)
    ]:
        above, _, last = name.rpartition(".")
        parent = layers.get_submodule(above)
        originals.append((parent, last, linear))
        setattr(parent, last, PackedLinear(linear))
    for module in list(model.modules()):
        for name, after in _ACTIVATIONS.items():
            packed, activation = getattr(module, name, None), getattr(module, after, None)
            if isinstance(packed, PackedLinear) and isinstance(activation, GELUActivation):
                packed.activation, packed.algorithm = "gelu", "none"  # by erf, not by tanh
                originals.append((module, after, activation))
                setattr(module, after, Identity())
    return originals


def fastest(seconds: Mapping[Precision, float]) -> Precision:
    return min(seconds, key=lambda name: seconds[name])


def choose(
    choice: PrecisionChoice,
    forward: Callable[[], Tensor],
    *,
    shape: tuple[int, int],
    device: str,
    key: tuple[str, ...],
    folder: Path,
    study: tuple[Path, tuple[str, ...]],
) -> PrecisionRecord:
    """For `auto`, the faster of fp32 and bf16 on a real micro-batch.

    The result is kept twice: for the trials of a study by its folder and what names a base model in
    it, so that they share their arithmetic whatever their shapes, threads and nodes; and for later
    studies in `folder`, by `key` (what computes, in which versions), shape, threads and processor.
    """
    if choice != "auto":
        return PrecisionRecord(actual=choice, setting=choice)
    names = (*key, *map(str, shape), str(torch.get_num_threads()), device, _processor(device))
    return _once(*study, lambda: _once(folder, names, lambda: time_steps(forward, shape, device)))


def _once(
    folder: Path, names: tuple[str, ...], make: Callable[[], PrecisionRecord]
) -> PrecisionRecord:
    path = folder / f"precision-{files.hash_text(names)[:32]}.json"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"), timeout=_PATIENCE_S)
    with (
        files.room_for(folder),
        suppress(Timeout),
        lock,
    ):  # trials that start together would slow each other's timing
        if path.exists():
            return PrecisionRecord.model_validate_json(path.read_bytes())
        record = make()
        files.write(path, record.model_dump_json().encode())
        return record
    return make()  # the process with the lock does not come to an end


def step_seconds(forward: Callable[[], Tensor], precision: Precision, device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    with arithmetic(precision, device):
        loss = forward()
    loss.backward()
    _wait(device)
    return time.perf_counter() - start


def time_steps(
    forward: Callable[[], Tensor],
    shape: tuple[int, int],
    device: str,
    seconds_of: Callable[[Callable[[], Tensor], Precision, str], float] = step_seconds,
) -> PrecisionRecord:
    """Take steps of both in turn, until every one of the one was faster than every one of the
    other; a first step of each does not count."""
    seconds: dict[Precision, list[float]] = {"fp32": [], "bf16": []}
    start = time.perf_counter()
    for number in range(1 + _MOST_ROUNDS):
        for precision, steps in seconds.items():
            duration = seconds_of(forward, precision, device)
            if number:
                steps.append(duration)
        if number and time.perf_counter() - start > _MOST_S:
            break
        if number >= _LEAST_ROUNDS and _is_clear(seconds["fp32"], seconds["bf16"]):
            break
    best = {precision: min(steps) for precision, steps in seconds.items()}
    used: Precision = "bf16" if best["bf16"] * _CLOSE < best["fp32"] else "fp32"
    log.info(
        "precision auto: fp32 %.2f s, bf16 %.2f s for %d x %d tokens: %s",
        best["fp32"],
        best["bf16"],
        *shape,
        used,
    )
    return PrecisionRecord(
        actual=used,
        setting="auto",
        seconds={name: round(value, 4) for name, value in best.items()},
        shape=shape,
    )


def _is_clear(first: list[float], second: list[float]) -> bool:
    return max(first) < min(second) or max(second) < min(first)


def _processor(device: str) -> str:
    """The processor, by the name that its maker or its kernel gives it."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = {
        line for line in lines if line.startswith(("model name", "flags", "CPU part", "Features"))
    }
    return "\n".join(sorted(model)) or f"{platform.machine()} {platform.processor()}"


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
