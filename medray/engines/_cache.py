"""Keys and values of rows that come and go: each row ends at the right edge, so rows of any length decode together."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_SLACK = 64  # tokens of room that are made at a time; all is copied then


class _Layer(DynamicLayer):
    """Written in place, where transformers' own layer copies all keys and values at every token."""

    is_initialized: bool

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.keys, self.values = key_states, value_states
            self._wide: tuple[Tensor, Tensor] | None = None
            return self.keys, self.values
        held, new = self.keys.shape[-2], key_states.shape[-2]
        if self._wide is None or self._wide[0].shape[-2] < held + new:
            self._wide = (_wider(self.keys, new + _SLACK), _wider(self.values, new + _SLACK))
        for wide, states in zip(self._wide, (key_states, value_states), strict=True):
            wide[..., held : held + new, :] = states
        self.keys, self.values = (wide[..., : held + new, :] for wide in self._wide)
        return self.keys, self.values

    def put(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self._wide = keys, values, None


class RowCache(Cache):
    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_Layer)

    def join(self, other: "RowCache") -> None:
        """Rows of another cache behind these, padded on the left to the longer of the two."""
        longest = max(self.get_seq_length(), other.get_seq_length())
        for mine, its in zip(self.layers, other.layers, strict=True):
            keys = torch.cat([_padded(mine.keys, longest), _padded(its.keys, longest)])
            mine.put(keys, torch.cat([_padded(mine.values, longest), _padded(its.values, longest)]))

    def keep(self, rows: Sequence[int], length: int) -> None:
        """Only these rows, and of them the last `length` places: what lies before is padding of all."""
        chosen = torch.tensor(rows)
        for layer in self.layers:
            layer.put(*(states[chosen.to(states.device), :, states.shape[-2] - length :] for states in (layer.keys, layer.values)))


def _wider(states: Tensor, room: int) -> Tensor:
    rows, heads, length, size = states.shape
    wide = states.new_empty(rows, heads, length + room, size)
    wide[..., :length, :] = states
    return wide


def _padded(states: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[-2], 0))
