"""Rows of token ids as the tensors of a micro-batch, for training and inference alike."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def collate(rows: Sequence[Sequence[int] | npt.NDArray[np.int32]], pad_id: int) -> dict[str, Tensor]:
    """Right-padded ids, and a mask made from lengths: an id cannot tell padding, since some models pad with their end of sequence."""
    longest = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for number, row in enumerate(rows):
        input_ids[number, : len(row)] = torch.from_numpy(np.array(row, dtype=np.int64))
        attention_mask[number, : len(row)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
