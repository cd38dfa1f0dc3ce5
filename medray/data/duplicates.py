"""Finds duplicates. Exact duplicates are equal after normalization; near duplicates share word
5-grams, found by MinHash and then counted.

Memory holds only numbers per row: bands are sorted one after the other, and a text is read again
only for a comparison."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from medray.data import minhash
from medray.data.examples import Positions
from medray.data.meter import Meter
from medray.data.minhash import Numbers, Signatures, Signer, normalize

# Per text and band. Only texts from a template share a band with more texts than that.
_MAX_COMPARISONS = 1000
_MAX_SHINGLE_SETS = 10_000  # in the cache of texts' shingles, about 2.5 kB each
_MAX_PAIRS_APART = 1_000_000  # in the cache of pairs that are not near duplicates


@dataclass(frozen=True)
class Duplicates:
    clusters: list[int]  # a number per row; rows with the same number stay on one side of a split
    exact: list[list[int]]  # groups of rows with the same text
    near: list[list[int]]  # groups of rows with different texts that overlap


def find(
    texts: Sequence[str],
    threshold: float,
    signatures: Signatures | None = None,
    progress: Meter | None = None,
) -> Duplicates:
    """Group rows into duplicates. Two texts are near duplicates if the Jaccard index of their
    5-grams is at least `threshold`."""
    if not texts:
        return Duplicates([], [], [])
    signatures = signatures or Signatures([Signer().sign(texts, minhash.band_width(threshold))])
    order, starts = _runs(*signatures.digest())
    first_of_run = order[starts[:-1]]  # rows of a run are in order
    runs = np.argsort(first_of_run)
    first_rows = first_of_run[runs]  # the first row of each text
    number_of = np.empty(len(order), dtype=np.int64)
    number_of[order] = np.repeat(np.argsort(runs), np.diff(starts))
    exact = [
        order[starts[run] : starts[run + 1]].tolist()
        for run in runs
        if starts[run + 1] - starts[run] > 1
    ]
    rows_of = {int(number_of[rows[0]]): rows for rows in exact}

    parents = TextMatcher(texts, first_rows, threshold).match(signatures, progress or Meter.idle())
    roots = np.array([find_root(parents, number) for number in range(len(parents))])
    lowest = np.full(len(parents), len(parents))
    np.minimum.at(lowest, roots, np.arange(len(parents)))
    clusters = first_rows[lowest[roots]][number_of]
    order, starts = _runs(lowest[roots])
    near = [
        sorted(
            row
            for number in order[begin:end].tolist()
            for row in rows_of.get(number, [int(first_rows[number])])
        )
        for begin, end in pairwise(starts.tolist())
        if end - begin > 1
    ]
    return Duplicates(clusters.tolist(), exact, near)


class TextMatcher:
    """Unites near duplicates among texts, which it knows by number, with caches of recent work."""

    def __init__(self, texts: Sequence[str], rows: Positions, threshold: float) -> None:
        self.texts, self.rows, self.threshold = texts, rows, threshold
        self.parents = list(range(len(rows)))
        self._signer = Signer()
        self._shingle_sets: OrderedDict[int, Numbers] = OrderedDict()
        self._apart: set[tuple[int, int]] = set()

    def match(self, signatures: Signatures, progress: Meter) -> list[int]:
        """Unite the texts that overlap enough and return the parents. Only texts that share a band
        of their signatures are compared."""
        for band in range(signatures.num_bands):
            for bucket in _buckets(signatures.band(band)[self.rows]):
                self.join(bucket)
            progress.add(len(self.rows) // signatures.num_bands)
        return self.parents

    def join(self, bucket: list[int]) -> None:
        """Unite the texts of a bucket that overlap enough."""
        # The first match ends the search for a text, so a thousand copies cost a thousand
        # comparisons, not half a million.
        groups: list[list[int]] = []
        for number in bucket:
            own, others, left = [number], [], iter(range(_MAX_COMPARISONS))
            for group in groups:
                same = find_root(self.parents, group[0]) == find_root(self.parents, number)
                if same or any(
                    self._near(other, number) for other, _ in zip(group, left, strict=False)
                ):
                    root = find_root(self.parents, number)
                    self.parents[find_root(self.parents, group[0])] = root
                    own = [*group, *own]
                else:
                    others.append(group)
            groups = [*others, own]

    def _near(self, first: int, second: int) -> bool:
        if (first, second) in self._apart:
            return False
        is_near = jaccard(self._shingles(first), self._shingles(second)) >= self.threshold
        if not is_near:
            if len(self._apart) >= _MAX_PAIRS_APART:
                self._apart.clear()
            self._apart.add((first, second))
        return is_near

    def _shingles(self, number: int) -> Numbers:
        shingles = self._shingle_sets.pop(number, None)
        if shingles is None:
            shingles = self._signer.shingles(normalize(self.texts[int(self.rows[number])]))
            if len(self._shingle_sets) >= _MAX_SHINGLE_SETS:
                self._shingle_sets.popitem(last=False)
        self._shingle_sets[number] = shingles
        return shingles


def _runs(*keys: npt.NDArray[np.generic]) -> tuple[Positions, Positions]:
    """Return positions sorted by key (a stable sort), and where each run of equal keys starts; the
    last start is the end."""
    order = np.lexsort(keys)
    is_new = np.zeros(len(order), dtype=bool)
    for key in keys:
        sorted_key = key[order]
        is_new[1:] |= sorted_key[1:] != sorted_key[:-1]
    is_new[:1] = True
    return order, np.append(np.flatnonzero(is_new), len(order))


def _buckets(keys: Numbers) -> Iterator[list[int]]:
    """Yield each group of at least two texts that have the same key."""
    order, starts = _runs(keys)
    sizes = np.diff(starts)
    for run in np.flatnonzero(sizes > 1):
        yield order[starts[run] : starts[run + 1]].tolist()


def jaccard(first: Numbers, second: Numbers) -> float:
    """Return the Jaccard index: the share of all numbers that are in both sets."""
    num_shared = len(np.intersect1d(first, second, assume_unique=True))
    return num_shared / (len(first) + len(second) - num_shared)


def find_root(parents: list[int], number: int) -> int:
    """Return the root of a number in a union-find structure, and shorten the path to it."""
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = parents[number]
    return number
