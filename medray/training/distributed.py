"""The workers of one trial: this process alone, or the ranks of a torch process group that Ray
Train made."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def shared(value: Any) -> Any:
    """What the first worker has, on every worker."""
    if world_size() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def gathered(values: Sequence[Any]) -> list[Any]:
    """The workers' lists one after the other, on every worker."""
    if world_size() == 1:
        return list(values)
    held: list[Any] = [None] * world_size()
    dist.all_gather_object(held, list(values))
    return [value for part in held for value in part]


def summed(tensors: Sequence[Tensor], numbers: Sequence[float], device: str) -> list[float]:
    """Add the tensors up over the workers, in place and in one message; the sums of the numbers
    come back."""
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
    """This worker's part: every world_size-th item."""
    return items[rank() :: world_size()]
