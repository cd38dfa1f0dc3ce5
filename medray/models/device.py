"""The device that a process computes on: its products in fp32, and the errors of a full memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from medray.config.trial import Precision

_OUT_OF_MEMORY = (
    "out of memory",  # of CUDA's allocator, its driver and NCCL
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def device_of(num_gpus: float | None) -> str:
    """Return the device of a process that has so many GPUs reserved; None: nothing is reserved.

    Ray 2.60 shows every GPU of the node also to a process that has reserved none."""
    return "cuda" if num_gpus != 0 and torch.cuda.is_available() else "cpu"


def is_out_of_memory(err: BaseException) -> bool:
    return isinstance(err, (torch.OutOfMemoryError, MemoryError)) or any(
        words in str(err) for words in _OUT_OF_MEMORY
    )


@contextmanager
def fast_products(precision: Precision, device: str) -> Iterator[None]:
    """Let a GPU multiply fp32 as TF32 inside a block, for training. Evaluations and probes outside
    it stay exact."""
    if device != "cuda" or precision != "fp32":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
