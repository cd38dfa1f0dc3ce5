"""fp32, bf16 or fp16 for one model and batch shape on this machine, found by trying rather than by guessing."""

import logging
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from medray import storage
from medray.checkpoint import PrecisionRecord

log = logging.getLogger(__name__)
Precision = Literal["fp32", "bf16", "fp16"]
Asked = Literal["auto", "fp32", "bf16", "fp16"]
_PATIENCE_S = 600  # for another trial that times
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
) -> PrecisionRecord:
    """For `auto`, two steps in fp32 and two in bf16 on a real micro-batch; the faster second step wins.

    The result is kept in the folder, by `key` (what computes, in which versions), shape, threads and processor: it is timed once.
    """
    if asked != "auto":
        return PrecisionRecord(used=asked, asked=asked)
    names = [*key, *map(str, shape), str(torch.get_num_threads()), device, processor(device)]
    path = folder / f"precision-{storage.hash_text(names)[:32]}.json"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"), timeout=_PATIENCE_S)
    with storage.room_for(folder), suppress(Timeout), lock:  # trials that start together would slow each other's timing
        if path.exists():
            return PrecisionRecord.model_validate_json(path.read_bytes())
        record = _timed(asked, forward, shape, device)
        storage.write(path, record.model_dump_json().encode())
        return record
    return _timed(asked, forward, shape, device)  # whoever holds the lock does not come to an end


def _timed(asked: Asked, forward: Callable[[], Tensor], shape: tuple[int, int], device: str) -> PrecisionRecord:
    seconds = {precision: _second_step(forward, precision, device) for precision in ("fp32", "bf16")}
    used: Precision = "bf16" if seconds["bf16"] < seconds["fp32"] else "fp32"
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


def _second_step(forward: Callable[[], Tensor], precision: Precision, device: str) -> float:
    seconds = 0.0
    for _ in range(2):
        _wait(device)
        start = time.perf_counter()
        with arithmetic(precision, device):
            loss = forward()
        loss.backward()
        _wait(device)
        seconds = time.perf_counter() - start
    return seconds


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
