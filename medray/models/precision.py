"""The precisions fp32, bf16 and fp16: their types, the choice by timing, and weights cast once for
serving.

`arithmetic` leaves weights unchanged. `cast` casts the weights of a merged model, as autocast would
at every call. Between the layers of a language model, numbers stay in fp32, so its results equal
those of autocast. An encoder in bf16 computes in bf16 everywhere, which rounds a little more. On a
CPU its weights are packed once, and each GELU runs inside the product before it."""

import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.nn import Identity, Linear, Module, Parameter
from transformers.activations import GELUActivation

from medray.config.trial import Precision, PrecisionChoice
from medray.errors import ConfigError, suggest
from medray.models.families import ENCODERS, Family
from medray.storage import files
from medray.storage.checkpoint import PrecisionRecord

log = logging.getLogger(__name__)
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# the activation after each linear layer, in every encoder of the table
_ACTIVATIONS = {"dense": "intermediate_act_fn", "lin1": "activation"}
_PATIENCE_S = 600  # to wait for another trial's timing
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 12
_MOST_S = 30.0  # of timing without a clear result
_CLOSE = 1.1  # trials use fp32 unless bf16 is faster by this factor
_DEVICES = ("auto", "cpu", "cuda")
# a module, the name of one of its parts, and that part before the cast
Originals = list[tuple[Module, str, Any]]


def dtype_name(precision: Precision) -> str:
    """Return the name of the type in torch, DeepSpeed and vLLM."""
    return str(DTYPES[precision]).removeprefix("torch.")


def device_of(name: str) -> str:
    """Return the name of a device; `auto` is a GPU where there is one."""
    has_gpu = torch.cuda.is_available()
    if name not in _DEVICES:
        raise ConfigError(f"device: {name!r:.60} is not known; {suggest(name, _DEVICES)}")
    if name == "cuda" and not has_gpu:
        raise ConfigError("device: PyTorch has no GPU on this machine; give auto or cpu")
    return ("cuda" if has_gpu else "cpu") if name == "auto" else name


def check_precision(precision: object, where: str) -> None:
    if precision not in get_args(Precision):
        raise ConfigError(
            f"{where}: precision {precision!r:.60} is not known; "
            f"{suggest(precision, get_args(Precision))}"
        )


def default_precision(choice: PrecisionChoice, device: str = "cpu") -> Precision:
    """Return the precision without timing: `auto` becomes fp32, or on a GPU its own."""
    if choice != "auto":
        return choice
    return fast_precision(device) if device == "cuda" else "fp32"


def fast_precision(device: str) -> Precision:
    """Return the 16 bits that the hardware multiplies, and fp32 where it multiplies neither."""
    if device == "cuda":
        capability = torch.cuda.get_device_capability()
        return "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"
    has_bf16 = _has_avx512_bf16() or torch.cpu._is_amx_tile_supported()
    return "bf16" if has_bf16 else "fp32"


def multiplies_bf16() -> bool:
    """Return whether this processor multiplies bf16 and PyTorch has oneDNN, which uses that."""
    return torch.backends.mkldnn.is_available() and _has_avx512_bf16()


def _has_avx512_bf16() -> bool:
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def arithmetic(precision: Precision, device: str) -> AbstractContextManager[object]:
    """Return the context to compute in. Weights stay unchanged: casting them per call costs less
    than 1% of a micro-batch."""
    return arithmetic_of(precision, device)()


def arithmetic_of(
    precision: Precision, device: str
) -> Callable[[], AbstractContextManager[object]]:
    """Return a function that makes a new context per call, for an engine with one precision."""
    return (
        nullcontext
        if precision == "fp32"
        else partial(torch.autocast, device, dtype=DTYPES[precision])
    )


class PackedLinear(Module):
    """A linear layer in bf16 on a CPU. It calls the operators that PyTorch's compiler uses."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.packed_weight = torch.ops.mkldnn._reorder_linear_weight(
            linear.weight.detach().bfloat16(), None
        )
        self.bias = None if linear.bias is None else linear.bias.detach().bfloat16()
        self.activation, self.algorithm = "none", ""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs.bfloat16(), self.packed_weight, self.bias, self.activation, [], self.algorithm
        )
        return outputs


def cast(
    model: Any, family: Family, precision: Precision, originals: Originals | None = None
) -> None:
    """Convert weights and layers in place, one module after another, and append the originals to a
    list where one is given."""
    if precision == "fp32":
        return
    is_whole = precision == "bf16" and family.name in ENCODERS
    is_packed = is_whole and next(model.parameters()).device.type == "cpu" and multiplies_bf16()
    keep = (lambda parts: None) if originals is None else originals.extend
    if is_packed:
        keep(_pack(model, family))
    for module in list(model.modules()):
        if is_whole or isinstance(module, Linear):
            keep(round_weights(module, precision))


def round_weights(module: Module, precision: Precision) -> Originals:
    """Convert a module's own weights in place, and return the originals."""
    originals: Originals = []
    for name, parameter in list(module.named_parameters(recurse=False)):
        originals.append((module, name, parameter))
        # A new parameter: an output layer may share its weights with the embeddings, which stay
        # unchanged then.
        setattr(
            module, name, Parameter(parameter.detach().to(DTYPES[precision]), requires_grad=False)
        )
    return originals


@contextmanager
def cast_within(model: Any, family: Family, precision: Precision) -> Iterator[None]:
    """Cast a model inside a block, and restore it afterwards."""
    originals: Originals = []
    cast(model, family, precision, originals)
    try:
        yield
    finally:
        for module, name, part in originals:
            setattr(module, name, part)


def _pack(model: Any, family: Family) -> Originals:
    """Replace the linear layers that LoRA adapts and the activations after them, but not the
    head."""
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
            layer, activation = getattr(module, name, None), getattr(module, after, None)
            if isinstance(layer, PackedLinear) and isinstance(activation, GELUActivation):
                layer.activation, layer.algorithm = "gelu", "none"  # with erf, not with tanh
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
    """Return the precision of a trial: for `auto`, that of a GPU, or the faster of fp32 and bf16 on
    a real micro-batch. A GPU is not timed: a step in fp32 may not fit into its memory.

    The result is stored twice. The trials of a study share it by `study`, which names the folder of
    the study and the base model, so that shapes, threads and nodes do not change it. Later studies
    find it in `folder`, by `key` (the model and the versions), shape, threads and processor.
    """
    if choice != "auto" or device == "cuda":
        return PrecisionRecord(actual=default_precision(choice, device), setting=choice)
    names = (*key, *map(str, shape), str(torch.get_num_threads()), device, processor(device))
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
    ):  # trials that time together would slow each other down
        if path.exists():
            return PrecisionRecord.model_validate_json(path.read_bytes())
        record = make()
        files.write(path, record.model_dump_json().encode())
        return record
    return make()  # the process with the lock did not end in time


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
    """Time steps in both precisions in turn, until all steps of one are faster than all of the
    other.

    The first step of each does not count.
    """
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
    faster: Precision = "bf16" if best["bf16"] * _CLOSE < best["fp32"] else "fp32"
    log.info(
        "precision auto: fp32 %.2f s, bf16 %.2f s for %d x %d tokens: %s",
        best["fp32"],
        best["bf16"],
        *shape,
        faster,
    )
    return PrecisionRecord(
        actual=faster,
        setting="auto",
        seconds={name: round(value, 4) for name, value in best.items()},
        shape=shape,
    )


def _is_clear(first: list[float], second: list[float]) -> bool:
    return max(first) < min(second) or max(second) < min(first)


def processor(device: str) -> str:
    """Return a description of the processor that differs between models."""
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
