"""Rows of token ids as the tensors of a micro-batch, for training and inference alike."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medray.models.families import Side


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
