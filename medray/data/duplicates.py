"""Which texts are the same or nearly so. Exact: equal after normalising. Near: word 5-grams overlap, found by MinHash, then counted."""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_SHINGLE = 5
_HASHES = 128


@dataclass(frozen=True)
class Duplicates:
    clusters: list[int]  # one number a row; rows of one number never stand on two sides of a split
    exact: list[list[int]]  # groups of rows with the same text
    near: list[list[int]]  # groups that hold texts which overlap without being the same


def normalise(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def find(texts: Sequence[str], threshold: float) -> Duplicates:
    """Group rows; `threshold` is the Jaccard overlap from which on two texts count as near duplicates."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        rows_of[normalise(text)].append(row)
    unique = list(rows_of)
    parent = list(range(len(unique)))
    _join_near(unique, threshold, parent)
    members: dict[int, list[int]] = defaultdict(list)
    for number in range(len(unique)):
        members[_root(parent, number)].append(number)
    clusters = [0] * len(texts)
    near = []
    for numbers in members.values():
        rows = sorted(row for number in numbers for row in rows_of[unique[number]])
        for row in rows:
            clusters[row] = rows[0]
        if len(numbers) > 1:
            near.append(rows)
    return Duplicates(clusters, [rows for rows in rows_of.values() if len(rows) > 1], near)


def _join_near(texts: Sequence[str], threshold: float, parent: list[int]) -> None:
    """Unite the texts that overlap enough. Texts that share a band of their signatures are compared, others are not."""
    words: dict[str, int] = {}
    shingles = [_shingles(text, words) for text in texts]
    signatures = _signatures(shingles)
    width = _band_width(threshold)
    apart: set[tuple[int, int]] = set()

    def near(first: int, second: int) -> bool:
        if (first, second) in apart:
            return False
        found = _overlap(shingles[first], shingles[second]) >= threshold
        if not found:
            apart.add((first, second))
        return found

    for start in range(0, _HASHES, width):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for number, signature in enumerate(signatures[:, start : start + width]):
            buckets[signature.tobytes()].append(number)
        for bucket in buckets.values():
            # One comparison that succeeds places a text, so a thousand copies cost a thousand comparisons, not half a million.
            groups: list[list[int]] = []
            for number in bucket:
                own, others = [number], []
                for group in groups:
                    if _root(parent, group[0]) == _root(parent, number) or any(near(other, number) for other in group):
                        parent[_root(parent, group[0])] = _root(parent, number)
                        own = [*group, *own]
                    else:
                        others.append(group)
                groups = [*others, own]


def _band_width(threshold: float) -> int:
    """The widest band by which fewer than one pair in a thousand that overlaps by `threshold` is missed."""
    return max((width for width in (1, 2, 4, 8, 16) if (1 - threshold**width) ** (_HASHES // width) < 1e-3), default=1)


def _shingles(text: str, words: dict[str, int]) -> npt.NDArray[np.uint64]:
    """Hashes of the text's word 5-grams; of all its words where it has fewer."""
    numbers = [words.get(word) or words.setdefault(word, _word_hash(word)) for word in text.split()]
    values = np.array(numbers, dtype=np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(values, min(_SHINGLE, len(values)))
    mixed = np.zeros(len(windows), dtype=np.uint64)
    for column in range(windows.shape[1]):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + windows[:, column]
        mixed ^= mixed >> np.uint64(29)
    return np.unique(mixed)


def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") or 1


def _signatures(shingles: Sequence[npt.NDArray[np.uint64]]) -> npt.NDArray[np.uint64]:
    rng = np.random.default_rng(20_250_101)  # fixed: the same texts group alike on every machine
    factors = rng.integers(1, 1 << 63, _HASHES, dtype=np.uint64) | np.uint64(1)
    offsets = rng.integers(0, 1 << 63, _HASHES, dtype=np.uint64)
    rows = [(values[:, None] * factors + offsets).min(axis=0) for values in shingles]
    return np.array(rows, dtype=np.uint64).reshape(len(rows), _HASHES)


def _overlap(first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]) -> float:
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


def _root(parent: list[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number
