"""Which texts are the same or nearly so. Exact: equal after normalising. Near: word 5-grams
overlap, found by MinHash, then counted.

Numbers of rows are all that is held: bands are sorted one after the other, and a text is read again
only to be compared."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from medray.data import minhash
from medray.data.meter import Meter
from medray.data.minhash import Numbers, Signatures, Signer, normalize

Positions = npt.NDArray[np.int64]
# texts that one is compared with in a band; more share one only where a template was filled in
_MOST_COMPARED = 1000
_MOST_HELD = 10_000  # texts whose shingles are remembered, about 2.5 kB each
_MOST_APART = 1_000_000  # pairs that are remembered not to be near


@dataclass(frozen=True)
class Duplicates:
    clusters: list[int]  # one number a row; rows of one number never stand on two sides of a split
    exact: list[list[int]]  # groups of rows with the same text
    near: list[list[int]]  # groups that hold texts which overlap without being the same


def find(
    texts: Sequence[str],
    threshold: float,
    signed: Signatures | None = None,
    progress: Meter | None = None,
) -> Duplicates:
    """Group rows; `threshold` is the Jaccard overlap from which on two texts count as near
    duplicates."""
    if not texts:
        return Duplicates([], [], [])
    signed = signed or Signatures([Signer().sign(texts, minhash.band_width(threshold))])
    order, starts = _runs(*signed.digest())
    first_of_run = order[starts[:-1]]  # rows of a run are in order
    ranked = np.argsort(first_of_run)
    unique = first_of_run[ranked]  # the first row of each text
    number_of = np.empty(len(order), dtype=np.int64)
    number_of[order] = np.repeat(np.argsort(ranked), np.diff(starts))
    exact = [
        order[starts[run] : starts[run + 1]].tolist()
        for run in ranked
        if starts[run + 1] - starts[run] > 1
    ]
    rows_of = {int(number_of[rows[0]]): rows for rows in exact}

    parent = TextMatcher(texts, unique, threshold).joined(signed, progress or Meter.idle())
    roots = np.array([_root(parent, number) for number in range(len(parent))])
    lowest = np.full(len(parent), len(parent))
    np.minimum.at(lowest, roots, np.arange(len(parent)))
    clusters = unique[lowest[roots]][number_of]
    order, starts = _runs(lowest[roots])
    near = [
        sorted(
            row
            for number in order[begin:end].tolist()
            for row in rows_of.get(number, [int(unique[number])])
        )
        for begin, end in pairwise(starts.tolist())
        if end - begin > 1
    ]
    return Duplicates(clusters.tolist(), exact, near)


class TextMatcher:
    """Texts by their numbers, with what was found out about them lately."""

    def __init__(self, texts: Sequence[str], rows: Positions, threshold: float) -> None:
        self.texts, self.rows, self.threshold = texts, rows, threshold
        self.parent = list(range(len(rows)))
        self._signer = Signer()
        self._held: OrderedDict[int, Numbers] = OrderedDict()
        self._apart: set[tuple[int, int]] = set()

    def joined(self, signed: Signatures, progress: Meter) -> list[int]:
        """Unite the texts that overlap enough. Texts that share a band of their signatures are
        compared, others are not."""
        for band in range(signed.num_bands):
            for bucket in _buckets(signed.band(band)[self.rows]):
                self.join(bucket)
            progress.add(len(self.rows) // signed.num_bands)
        return self.parent

    def join(self, bucket: list[int]) -> None:
        """Unite those of a bucket that overlap enough."""
        # One comparison that succeeds places a text, so a thousand copies cost a thousand
        # comparisons, not half a million.
        groups: list[list[int]] = []
        for number in bucket:
            own, others, left = [number], [], iter(range(_MOST_COMPARED))
            for group in groups:
                same = _root(self.parent, group[0]) == _root(self.parent, number)
                if same or any(
                    self._near(other, number) for other, _ in zip(group, left, strict=False)
                ):
                    self.parent[_root(self.parent, group[0])] = _root(self.parent, number)
                    own = [*group, *own]
                else:
                    others.append(group)
            groups = [*others, own]

    def _near(self, first: int, second: int) -> bool:
        if (first, second) in self._apart:
            return False
        found = jaccard(self._shingles(first), self._shingles(second)) >= self.threshold
        if not found:
            if len(self._apart) >= _MOST_APART:
                self._apart.clear()
            self._apart.add((first, second))
        return found

    def _shingles(self, number: int) -> Numbers:
        held = self._held.pop(number, None)
        if held is None:
            held = self._signer.shingles(normalize(self.texts[int(self.rows[number])]))
            if len(self._held) >= _MOST_HELD:
                self._held.popitem(last=False)
        self._held[number] = held
        return held


def _runs(*keys: npt.NDArray[np.generic]) -> tuple[Positions, Positions]:
    """Positions in the order of their keys, equal ones as they stand; and where in it each run of
    equal keys starts, with its end."""
    order = np.lexsort(keys)
    is_new = np.zeros(len(order), dtype=bool)
    for key in keys:
        ordered = key[order]
        is_new[1:] |= ordered[1:] != ordered[:-1]
    is_new[:1] = True
    return order, np.append(np.flatnonzero(is_new), len(order))


def _buckets(keys: Numbers) -> Iterator[list[int]]:
    """Numbers of texts that have the same key, two of them at least."""
    order, starts = _runs(keys)
    sizes = np.diff(starts)
    for run in np.flatnonzero(sizes > 1):
        yield order[starts[run] : starts[run + 1]].tolist()


def jaccard(first: Numbers, second: Numbers) -> float:
    """The share of all numbers that both have."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


def _root(parent: list[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number
