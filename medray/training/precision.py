"""fp32, bf16 or fp16 for one model and batch shape on this machine, found by trying rather than by guessing."""

import logging
import time
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from medray.checkpoint import PrecisionRecord

log = logging.getLogger(__name__)
Precision = Literal["fp32", "bf16", "fp16"]
_timed: dict[Hashable, PrecisionRecord] = {}
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def arithmetic(precision: Precision, device: str) -> AbstractContextManager[object]:
    """The context to compute in. Weights stay as they are: casting them per call costs less than 1 % of a micro-batch."""
    return nullcontext() if precision == "fp32" else torch.autocast(device, dtype=_TYPES[precision])


def choose(
    asked: Literal["auto", "fp32", "bf16", "fp16"], forward: Callable[[], Tensor], *, shape: tuple[int, int], device: str, key: Hashable
) -> PrecisionRecord:
    """For `auto`, two steps in fp32 and two in bf16 on a real micro-batch; the faster second step wins.

    A process that trains another trial of the same `key` (base, settings of the model, shape, threads) does not time it again.
    """
    if asked != "auto":
        return PrecisionRecord(used=asked, asked=asked)
    if key in _timed:
        return _timed[key]
    seconds = {precision: _second_step(forward, precision, device) for precision in ("fp32", "bf16")}
    used: Precision = "bf16" if seconds["bf16"] < seconds["fp32"] else "fp32"
    log.info("precision auto: fp32 %.2f s, bf16 %.2f s for %d x %d tokens: %s", seconds["fp32"], seconds["bf16"], *shape, used)
    _timed[key] = PrecisionRecord(used=used, asked=asked, seconds={name: round(value, 4) for name, value in seconds.items()}, shape=shape)
    return _timed[key]


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
