"""What replaces functions of torch that would call a driver of CUDA: see pretend_cuda.py."""

from types import SimpleNamespace
from typing import Any

import torch
import torch.amp.grad_scaler
import torch.cuda.amp.common


def functions(capability: tuple[int, int]) -> dict[str, Any]:
    """Return what replaces functions of torch, by name."""
    memory = 140 << 30
    properties = SimpleNamespace(
        name="in name",
        major=capability[0],
        minor=capability[1],
        multi_processor_count=132,
        total_memory=memory,
    )
    results = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "_lazy_init": None,
        "set_device": None,
        "synchronize": None,
        "empty_cache": None,
        "is_bf16_supported": capability >= (8, 0),
        "get_device_capability": capability,
        "get_device_name": "in name",
        "get_device_properties": properties,
        "mem_get_info": (memory, memory),
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "memory_reserved": 0,
        "get_per_process_memory_fraction": 1.0,
        "set_per_process_memory_fraction": None,
        "max_memory_reserved": 0,
        "reset_peak_memory_stats": None,
    }
    functions = {f"torch.cuda.{name}": _returning(value) for name, value in results.items()}
    return functions | {
        "torch.cuda.amp.common.amp_definitely_not_available": _returning(False),
        "torch.inference_mode": torch.no_grad,  # inference tensors are no subclasses
    }


def _returning(value: Any) -> Any:
    return lambda *args, **kwargs: value
