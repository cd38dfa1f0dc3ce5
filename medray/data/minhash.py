"""Signatures of texts: a digest of the normalized text and MinHash bands of its word 5-grams,
computed on all cores.

Two texts with the same digest are the same. Two texts that share a band may be near duplicates:
data/duplicates compares their 5-grams."""

import hashlib
import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np
import numpy.typing as npt

from medray.data.examples import Examples
from medray.data.meter import Meter
from medray.errors import DataError
from medray.types import Example

Numbers = npt.NDArray[np.uint64]
RowHashes = npt.NDArray[np.uint64]
PIECE = 8192  # rows that a worker signs at a time
_SHINGLE = 5
_HASHES = 128
_MAX_WORDS = 200_000  # in the cache of words' hashes, about 30 MB per process
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Signatures:
    """A column per row: two numbers of the digest, then one per band. The columns are in memory, or
    in one file per piece."""

    def __init__(self, pieces: Sequence[Numbers] | Sequence[Path]) -> None:
        self._pieces = pieces
        self.num_bands = _map(pieces[0]).shape[0] - 2

    def digest(self) -> tuple[Numbers, Numbers]:
        return self._line(0), self._line(1)

    def band(self, number: int) -> Numbers:
        return self._line(2 + number)

    def _line(self, number: int) -> Numbers:
        return np.concatenate([np.array(_map(piece)[number]) for piece in self._pieces])


def _map(piece: Numbers | Path) -> Numbers:
    """Map a piece briefly: a map keeps its file open, and large data has more pieces than a process
    may open files."""
    numbers: Numbers = np.load(piece, mmap_mode="r") if isinstance(piece, Path) else piece
    return numbers


def normalize(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def band_width(threshold: float) -> int:
    """Return the widest band that misses fewer than one in a thousand pairs whose overlap is
    `threshold`."""
    return max(
        (
            width
            for width in (1, 2, 4, 8, 16)
            if (1 - threshold**width) ** (_HASHES // width) < 1e-3
        ),
        default=1,
    )


class Signer:
    """Signs texts, with a cache of the hashes of words."""

    def __init__(self) -> None:
        # A fixed seed: every machine must find the same duplicates.
        rng = np.random.default_rng(20_250_101)
        self._factors = rng.integers(1, 1 << 63, _HASHES, dtype=np.uint64) | np.uint64(1)
        self._offsets = rng.integers(0, 1 << 63, _HASHES, dtype=np.uint64)
        self._words: dict[str, int] = {}

    def sign(self, texts: Iterable[str], width: int) -> Numbers:
        rows = [self._row(normalize(text), width) for text in texts]
        return np.array(rows, dtype=np.uint64).reshape(len(rows), 2 + _HASHES // width).T.copy()

    def shingles(self, text: str) -> Numbers:
        """Return the hashes of a normalized text's word 5-grams; a shorter text is one n-gram."""
        if len(self._words) > _MAX_WORDS:
            self._words.clear()
        words = self._words
        numbers = [
            words.get(word) or words.setdefault(word, _word_hash(word)) for word in text.split()
        ]
        values = np.array(numbers, dtype=np.uint64)
        size = min(_SHINGLE, len(values))
        hashes = np.zeros(len(values) - size + 1, dtype=np.uint64)
        for column in range(size):
            hashes = hashes * _MIX + values[column : column + len(hashes)]
            hashes ^= hashes >> np.uint64(29)
        return np.unique(hashes)

    def _row(self, text: str, width: int) -> Numbers:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        shingles = self.shingles(text)
        signature = (shingles[:, None] * self._factors + self._offsets).min(axis=0)
        keys = np.zeros(_HASHES // width, dtype=np.uint64)
        for column in signature.reshape(-1, width).T:
            keys = keys * _MIX + column
            keys ^= keys >> np.uint64(29)
        return np.concatenate([np.frombuffer(digest, dtype="<u8").astype(np.uint64), keys])


def _word_hash(word: str) -> int:
    return (
        int.from_bytes(
            hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
        )
        or 1
    )


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sign_table(
    path: Path, num_rows: int, width: int, progress: Meter, cores: int | None = None
) -> Signatures:
    """Sign the texts of examples on disk. Pieces of an interrupted run are used again."""
    folder = path.with_name(f"signed-{_HASHES // width}")
    folder.mkdir(exist_ok=True)
    pieces = {start: folder / f"{start:012}.npy" for start in range(0, num_rows, PIECE)}
    waiting: SimpleQueue[int] = SimpleQueue()
    for start, piece in pieces.items():
        if piece.exists():
            progress.count += min(PIECE, num_rows - start)
        else:
            waiting.put(start)

    ready: SimpleQueue[int] = SimpleQueue()
    count = min(cores or num_cores(), max(1, waiting.qsize()))
    if not waiting.empty():
        with ThreadPoolExecutor(count) as pool:
            workers = [
                pool.submit(_run_worker, path, width, pieces, waiting, ready) for _ in range(count)
            ]
            try:
                while not (all(worker.done() for worker in workers) and ready.empty()):
                    with suppress(Empty):
                        start = ready.get(timeout=0.2)
                        progress.add(min(PIECE, num_rows - start))
            finally:
                # After an error, the other workers must not start another piece.
                while _next(waiting) is not None:
                    pass
            for worker in workers:
                worker.result()
    return Signatures(list(pieces.values()))


def _run_worker(
    path: Path,
    width: int,
    pieces: Mapping[int, Path],
    waiting: "SimpleQueue[int]",
    ready: "SimpleQueue[int]",
) -> None:
    """Sign pieces in another process, until none is waiting; both queues hold first rows.

    It has a pipe to a process of its own: a fork would copy the locks of this process's threads,
    and a spawned process would run the user's script again. The worker ends when its pipe closes,
    so it cannot outlive this process.
    """
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from medray.data import minhash; minhash.serve()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        while (start := _next(waiting)) is not None:
            request = {
                "path": str(path),
                "start": start,
                "stop": start + PIECE,
                "width": width,
                "piece": str(pieces[start]),
            }
            with suppress(BrokenPipeError):  # the worker ended; reading its reply shows that
                worker.stdin.write(json.dumps(request) + "\n")
                worker.stdin.flush()
            if not worker.stdout.readline():
                raise DataError(
                    f"{path}: the worker that signs rows from {start} on ended with status "
                    f"{worker.wait()}; start again, finished pieces are kept"
                )
            ready.put(start)
        worker.stdin.close()


def serve() -> None:
    """Run a worker: sign the pieces named on standard input, and print a line when each is on
    disk."""
    signer = Signer()
    for line in sys.stdin:
        request = json.loads(line)
        examples = Examples.open(Path(request["path"]))
        texts = examples[request["start"] : request["stop"]].texts()
        place = Path(request["piece"])
        half = place.with_suffix(f".{os.getpid()}")
        with half.open("wb") as file:
            np.save(file, signer.sign(texts, request["width"]))
        half.replace(place)
        print("signed", flush=True)


def _next(waiting: "SimpleQueue[int]") -> int | None:
    try:
        return waiting.get_nowait()
    except Empty:
        return None


def hash_rows(examples: Iterable[Example]) -> RowHashes:
    """Return a number per row, equal for rows whose normalized texts are equal. It shows later
    which rows trained a model, without their texts."""
    return np.fromiter(map(_row_hash, examples), dtype=np.uint64)


def _row_hash(example: Example) -> int:
    contents = [turn.content for turn in example.turns] or [example.text]
    text = "\0".join(map(normalize, contents))
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )
