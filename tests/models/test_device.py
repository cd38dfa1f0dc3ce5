"""The device of a process follows the GPUs that are reserved for it, and its words for too little
memory are known."""

import pytest
import torch

from medray.models.device import fast_products, is_out_of_memory, reserved_device


@pytest.mark.parametrize(
    ("num_gpus", "is_available", "device"),
    [
        (0, True, "cpu"),
        (1, True, "cuda"),
        (0.5, True, "cuda"),
        (None, True, "cuda"),
        (1, False, "cpu"),
    ],
)
def test_a_gpu_is_used_only_where_it_is_reserved_or_nothing_is(
    monkeypatch: pytest.MonkeyPatch, num_gpus: float | None, is_available: bool, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_available)
    assert reserved_device(num_gpus) == device


@pytest.mark.parametrize(
    ("err", "is_known"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("NCCL error: unhandled cuda error: Cuda failure 2 'out of memory'"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
    ],
)
def test_every_word_for_too_little_memory_is_known(err: Exception, is_known: bool) -> None:
    assert is_out_of_memory(err) == is_known


def test_a_gpu_multiplies_fp32_as_tf32_inside_the_block_alone() -> None:
    inside = []
    for precision, device in (("fp32", "cuda"), ("bf16", "cuda"), ("fp32", "cpu")):
        with fast_products(precision, device):  # type: ignore[arg-type]
            inside.append(torch.get_float32_matmul_precision())
        assert torch.get_float32_matmul_precision() == "highest"
    assert inside == ["high", "highest", "highest"]
