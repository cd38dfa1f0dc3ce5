"""The device that a process computes on."""

import torch


def device_of(num_gpus: float | None) -> str:
    """Return the device of a process that has so many GPUs reserved; None: nothing is reserved.

    Ray 2.60 shows every GPU of the node also to a process that has reserved none."""
    return "cuda" if num_gpus != 0 and torch.cuda.is_available() else "cpu"
