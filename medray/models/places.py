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


def answer_places(
    lengths: Sequence[int], answers: Sequence[Sequence[tuple[int, int]]], padded: int, *, left: bool
) -> tuple[list[int], list[int]]:
    """Where the tokens of each row's answers are predicted: one place before each. By positions, since an id cannot tell padding."""
    rows: list[int] = []
    positions: list[int] = []
    for row, (length, spans) in enumerate(zip(lengths, answers, strict=True)):
        shift = padded - length if left else 0
        for start, end in spans:
            assert 1 <= start < end <= length, "an answer has a token, and one before it"
            rows += [row] * (end - start)
            positions += range(shift + start - 1, shift + end - 1)
    return rows, positions
