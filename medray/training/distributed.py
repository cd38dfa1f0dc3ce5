"""Collective calls between the workers of a trial: this process alone, or the ranks of the torch
process group that Ray Train starts."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def broadcast(value: Any) -> Any:
    """Return the first worker's value on every worker."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather(values: Sequence[Any]) -> list[Any]:
    """Return the workers' lists, one after the other, on every worker."""
    if world_size() == 1:
        return list(values)
    lists: list[Any] = [None] * world_size()
    dist.all_gather_object(lists, list(values))
    return [value for part in lists for value in part]


def add_up(tensors: Sequence[Tensor], numbers: Sequence[float], device: str) -> list[float]:
    """Add tensors and numbers up over the workers, in one message.

    Replaces the tensors by their sums and returns the sums of the numbers."""
    if world_size() == 1:
        return list(numbers)
    parts = [
        *(tensor.detach().float().reshape(-1) for tensor in tensors),
        torch.tensor(numbers, device=device),
    ]
    flat = torch.cat(parts)
    dist.all_reduce(flat)
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()
    return [float(number) for number in flat[start:]]


def share(items: Sequence[Any]) -> Sequence[Any]:
    """Return the items of this worker: every world_size-th one."""
    return items[rank() :: world_size()]
