"""Logits of chosen places of a batch: the output layer of a language model costs as much as several layers, for every token it reads."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def logits_at(model: Any, inputs: Mapping[str, Tensor], rows: Sequence[int], positions: Sequence[int]) -> Tensor:
    """A row of logits for each pair of row and position. What a model does with its logits afterwards is done to these alone."""
    place = inputs["input_ids"].device
    with _only(model, torch.tensor(rows, device=place), torch.tensor(positions, device=place)):
        logits: Tensor = model(**inputs, use_cache=False).logits
    assert logits.shape[:2] == (1, len(rows)), "the output layer was not asked once, for the chosen places"
    return logits[0]


@contextmanager
def _only(model: Any, rows: Tensor, positions: Tensor) -> Iterator[None]:
    # `logits_to_keep` takes one list of positions for all rows; answers stand at another place in each.
    def gather(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        (hidden,) = args
        return (hidden[rows, positions].unsqueeze(0),)

    handle = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def answer_places(lengths: Sequence[int], answers: Sequence[int], padded: int, *, left: bool) -> tuple[list[int], list[int]]:
    """Where the last `answers[row]` tokens of each row are predicted: one place before each. By lengths, since an id cannot tell padding."""
    rows: list[int] = []
    positions: list[int] = []
    for row, (length, count) in enumerate(zip(lengths, answers, strict=True)):
        end = padded if left else length
        rows += [row] * count
        positions += range(end - count - 1, end - 1)
    return rows, positions
