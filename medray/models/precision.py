"""A merged model in half precision: what autocast would cast at every call is cast once.

What flows between the layers of a language model stays in fp32, so its numbers are autocast's. An encoder in bf16 holds everything so,
which rounds a little more; on a CPU the weights of its layers lie as they are multiplied, instead of being laid out at every call, and a
GELU is applied where its inputs are made.
"""

import logging
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.nn import Identity, Linear, Module, Parameter
from transformers.activations import GELUActivation

from medray.config.study import Precision
from medray.models.build import Built
from medray.models.families import ENCODERS
from medray.storage import files
from medray.storage.checkpoint import PrecisionRecord

_FOLLOWED = {"dense": "intermediate_act_fn", "lin1": "activation"}  # a linear layer and its activation, in every encoder of the table
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Held = list[tuple[Module, str, Any]]  # what was there before: where, under which name, and what


class PackedLinear(Module):
    """In bf16, on a CPU. The operators are those that PyTorch compiles to."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().bfloat16(), None)
        self.bias = None if linear.bias is None else linear.bias.detach().bfloat16()
        self.activation, self.algorithm = "none", ""

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(inputs.bfloat16(), self.packed, self.bias, self.activation, [], self.algorithm)
        return found


def cast(built: Built, precision: Precision) -> Held:
    """In place. What was there before, for who wants it back."""
    if precision == "fp32":
        return []
    is_whole = precision == "bf16" and built.family.name in ENCODERS
    is_packed = is_whole and next(built.model.parameters()).device.type == "cpu" and multiplies_packed()
    held = _pack(built) if is_packed else []
    for module in list(built.model.modules()):
        if is_whole or isinstance(module, Linear):
            for name, parameter in list(module.named_parameters(recurse=False)):
                held.append((module, name, parameter))
                # Of its own: an output layer may share its weights with the embeddings, which then stay as they are.
                setattr(module, name, Parameter(parameter.detach().to(TYPES[precision]), requires_grad=False))
    return held


@contextmanager
def cast_within(built: Built, precision: Precision) -> Iterator[None]:
    """The model as `cast` leaves it, and afterwards as it was."""
    held = cast(built, precision)
    try:
        yield
    finally:
        for parent, name, part in held:
            setattr(parent, name, part)


def _pack(built: Built) -> Held:
    held = _pack_linears(built)
    for module in list(built.model.modules()):
        for linear, after in _FOLLOWED.items():
            packed, activation = getattr(module, linear, None), getattr(module, after, None)
            if isinstance(packed, PackedLinear) and isinstance(activation, GELUActivation):
                packed.activation, packed.algorithm = "gelu", "none"  # by erf, not by tanh
                held.append((module, after, activation))
                setattr(module, after, Identity())
    return held


def _pack_linears(built: Built) -> Held:
    """Those of its layers, which LoRA adapts; not those of its head."""
    layers = built.model.get_submodule(built.family.layers_path)
    held: Held = []
    for name, linear in [(name, module) for name, module in layers.named_modules() if isinstance(module, Linear)]:
        above, _, last = name.rpartition(".")
        parent = layers.get_submodule(above)
        held.append((parent, last, linear))
        setattr(parent, last, PackedLinear(linear))
    return held


def multiplies_packed() -> bool:
    """Whether this processor multiplies bf16, and PyTorch has oneDNN, which makes use of it."""
    return torch.backends.mkldnn.is_available() and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


log = logging.getLogger(__name__)
Asked = Literal["auto", Precision]
_PATIENCE_S = 600  # for another trial that times
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 12
_MOST_S = 30.0  # of timing that is not clear
_CLOSE = 1.1  # where bf16 is not faster by as much, trials are in fp32
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def arithmetic(precision: Precision, device: str) -> AbstractContextManager[object]:
    """The context to compute in. Weights stay as they are: casting them per call costs less than 1 % of a micro-batch."""
    return nullcontext() if precision == "fp32" else torch.autocast(device, dtype=_TYPES[precision])


def choose(
    asked: Asked,
    forward: Callable[[], Tensor],
    *,
    shape: tuple[int, int],
    device: str,
    key: tuple[str, ...],
    folder: Path,
    study: tuple[Path, tuple[str, ...]],
) -> PrecisionRecord:
    """For `auto`, the faster of fp32 and bf16 on a real micro-batch.

    The result is kept twice: for the trials of a study by its folder and what names a base model in it, so that they share their arithmetic
    whatever their shapes, threads and nodes; and for later studies in `folder`, by `key` (what computes, in which versions), shape, threads and
    processor.
    """
    if asked != "auto":
        return PrecisionRecord(used=asked, asked=asked)
    names = (*key, *map(str, shape), str(torch.get_num_threads()), device, processor(device))
    return _once(*study, lambda: _once(folder, names, lambda: _timed(asked, forward, shape, device)))


def _once(folder: Path, names: tuple[str, ...], make: Callable[[], PrecisionRecord]) -> PrecisionRecord:
    path = folder / f"precision-{files.hash_text(names)[:32]}.json"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"), timeout=_PATIENCE_S)
    with files.room_for(folder), suppress(Timeout), lock:  # trials that start together would slow each other's timing
        if path.exists():
            return PrecisionRecord.model_validate_json(path.read_bytes())
        record = make()
        files.write(path, record.model_dump_json().encode())
        return record
    return make()  # whoever holds the lock does not come to an end


def _timed(asked: Asked, forward: Callable[[], Tensor], shape: tuple[int, int], device: str) -> PrecisionRecord:
    """Steps of both in turn, until every one of the one was faster than every one of the other; a first step of each does not count."""
    seconds: dict[Precision, list[float]] = {"fp32": [], "bf16": []}
    start = time.perf_counter()
    for number in range(1 + _MOST_ROUNDS):
        for precision, steps in seconds.items():
            taken = _step(forward, precision, device)
            if number:
                steps.append(taken)
        if number and time.perf_counter() - start > _MOST_S:
            break
        if number >= _LEAST_ROUNDS and _is_clear(seconds["fp32"], seconds["bf16"]):
            break
    return _record(asked, {precision: min(steps) for precision, steps in seconds.items()}, shape)


def _is_clear(first: list[float], second: list[float]) -> bool:
    return max(first) < min(second) or max(second) < min(first)


def _record(asked: Asked, seconds: dict[Precision, float], shape: tuple[int, int]) -> PrecisionRecord:
    used: Precision = "bf16" if seconds["bf16"] * _CLOSE < seconds["fp32"] else "fp32"
    log.info("precision auto: fp32 %.2f s, bf16 %.2f s for %d x %d tokens: %s", seconds["fp32"], seconds["bf16"], *shape, used)
    rounded = {name: round(value, 4) for name, value in seconds.items()}
    return PrecisionRecord(used=used, asked=asked, seconds=rounded, shape=shape)


def processor(device: str) -> str:
    """What computes, by the name that its maker or its kernel gives it."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = {line for line in lines if line.startswith(("model name", "flags", "CPU part", "Features"))}
    return "\n".join(sorted(model)) or f"{platform.machine()} {platform.processor()}"


def _step(forward: Callable[[], Tensor], precision: Precision, device: str) -> float:
    """Its seconds."""
    _wait(device)
    start = time.perf_counter()
    with arithmetic(precision, device):
        loss = forward()
    loss.backward()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
