"""Rows of token ids as the tensors of a micro-batch, for training and inference alike."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medray.errors import DataError
from medray.models.families import Side


def check_rows(rows: Sequence[Sequence[int]]) -> None:
    num_empty = sum(not len(row) for row in rows)
    if num_empty:
        raise DataError(f"{num_empty} of {len(rows)} inputs have no tokens: an empty text cannot be answered")


def collate(
    rows: Sequence[Sequence[int] | npt.NDArray[np.int32]], pad_id: int, *, side: Side = "right", width: int = 0
) -> dict[str, Tensor]:
    """Padded ids, as wide as the longest row or `width`, and a mask made from lengths: an id cannot tell padding, since some models pad with their end of sequence."""
    longest = max(width, *(len(row) for row in rows))
    input_ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        input_ids[number, place] = torch.from_numpy(np.array(row, dtype=np.int64))
        attention_mask[number, place] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


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
