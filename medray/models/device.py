"""The device that a process computes on: its products in fp32, and the errors of a full memory."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from medray.config.trial import Precision
from medray.models.precision import DTYPES, arithmetic

_OUT_OF_MEMORY = (
    "out of memory",  # of CUDA's allocator, its driver and NCCL
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def reserved_device(num_gpus: float | None) -> str:
    """Return the device of a process that has so many GPUs reserved; None: nothing is reserved.

    Ray 2.60 shows every GPU of the node also to a process that has reserved none."""
    return "cuda" if num_gpus != 0 and torch.cuda.is_available() else "cpu"


def limit_memory(gpus: float) -> None:
    """Bound this process to its part of a GPU's memory, so that it cannot take another's. A trial
    that needs more halves its token budget, and batches without gradients follow the part."""
    if gpus and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(min(1.0, gpus))


def take_device(num_gpus: float) -> str:
    """Bound this process to the GPUs that are reserved for it, and return its device."""
    limit_memory(num_gpus)
    return reserved_device(num_gpus)


def free_memory() -> None:
    """Give the memory of objects that are no longer used back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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


def simulated_device(is_on_gpu: bool) -> str:
    """Return the device whose operators a plan counts: a build without CUDA has only the CPU's."""
    return "cuda" if is_on_gpu and torch.backends.cuda.is_built() else "cpu"


@contextmanager
def simulated_arithmetic(precision: Precision, device: str) -> Iterator[None]:
    """Return the context of `arithmetic` for tensors without contents, which need no device."""
    if device == "cpu" or precision == "fp32":
        with arithmetic(precision, device):
            yield
        return
    torch.set_autocast_dtype(device, DTYPES[precision])
    torch.set_autocast_enabled(device, True)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if not torch.autocast_decrement_nesting():
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, False)
