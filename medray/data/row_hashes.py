"""Rows as numbers, by what a model reads of them: which rows trained a model stays known without
their texts."""

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from medray.data.minhash import normalize
from medray.types import Example

RowHashes = npt.NDArray[np.uint64]


def hash_rows(examples: Iterable[Example]) -> RowHashes:
    """One number per row; rows whose texts are the same after normalising have the same one."""
    return np.fromiter(map(_hash, examples), dtype=np.uint64)


def _hash(example: Example) -> int:
    read = [turn.content for turn in example.turns] or [example.text]
    text = "\0".join(map(normalize, read))
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )
