"""The device of a process follows the GPUs that are reserved for it."""

import pytest
import torch

from medray.models.device import device_of


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
    assert device_of(num_gpus) == device
