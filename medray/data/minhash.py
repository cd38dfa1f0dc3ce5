"""What a text is compared by: a digest of its normalised form, and MinHash bands of its word
5-grams. Rows of numbers, made on every core.

Two texts that share a digest are the same. Two that share no band are not compared; those that do
are counted word by word elsewhere."""

import hashlib
import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO

import numpy as np
import numpy.typing as npt

from medray.data.examples import Examples
from medray.data.meter import Meter
from medray.errors import DataError

Numbers = npt.NDArray[np.uint64]
PIECE = 8192  # rows that one core signs before it says so
_SHINGLE = 5
_HASHES = 128
_MOST_WORDS = 200_000  # whose hashes are remembered, about 30 MB a process
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Signatures:
    """A column of numbers a row: two of the digest, then one a band. Held in memory, or in files of
    a piece each."""

    def __init__(self, pieces: Sequence[Numbers] | Sequence[Path]) -> None:
        self._pieces = pieces
        self.num_bands = _mapped(pieces[0]).shape[0] - 2

    def digest(self) -> tuple[Numbers, Numbers]:
        return self._line(0), self._line(1)

    def band(self, number: int) -> Numbers:
        return self._line(2 + number)

    def _line(self, number: int) -> Numbers:
        return np.concatenate([np.array(_mapped(piece)[number]) for piece in self._pieces])


def _mapped(piece: Numbers | Path) -> Numbers:
    """A map holds a file open, and data of millions of rows has more pieces than a process may have
    files."""
    found: Numbers = np.load(piece, mmap_mode="r") if isinstance(piece, Path) else piece
    return found


def normalize(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def band_width(threshold: float) -> int:
    """The widest band by which fewer than one pair in a thousand that overlaps by `threshold` is
    missed."""
    return max(
        (
            width
            for width in (1, 2, 4, 8, 16)
            if (1 - threshold**width) ** (_HASHES // width) < 1e-3
        ),
        default=1,
    )


class Signer:
    """Knows the hashes of words it met before."""

    def __init__(self) -> None:
        rng = np.random.default_rng(
            20_250_101
        )  # fixed: the same texts group alike on every machine
        self._factors = rng.integers(1, 1 << 63, _HASHES, dtype=np.uint64) | np.uint64(1)
        self._offsets = rng.integers(0, 1 << 63, _HASHES, dtype=np.uint64)
        self._words: dict[str, int] = {}

    def sign(self, texts: Iterable[str], width: int) -> Numbers:
        rows = [self._row(normalize(text), width) for text in texts]
        return np.array(rows, dtype=np.uint64).reshape(len(rows), 2 + _HASHES // width).T.copy()

    def shingles(self, text: str) -> Numbers:
        """Hashes of a normalised text's word 5-grams; of all its words where it has fewer."""
        if len(self._words) > _MOST_WORDS:
            self._words.clear()
        words = self._words
        numbers = [
            words.get(word) or words.setdefault(word, _word_hash(word)) for word in text.split()
        ]
        values = np.array(numbers, dtype=np.uint64)
        size = min(_SHINGLE, len(values))
        mixed = np.zeros(len(values) - size + 1, dtype=np.uint64)
        for column in range(size):
            mixed = mixed * _MIX + values[column : column + len(mixed)]
            mixed ^= mixed >> np.uint64(29)
        return np.unique(mixed)

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
    """Those that this process was given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sign_table(
    path: Path, num_rows: int, width: int, progress: Meter, cores: int | None = None
) -> Signatures:
    """Sign the texts of examples on disk; pieces that an earlier, interrupted run signed are there
    already."""
    folder = path.with_name(f"signed-{_HASHES // width}")
    folder.mkdir(exist_ok=True)
    pieces = {start: folder / f"{start:012}.npy" for start in range(0, num_rows, PIECE)}
    waiting: SimpleQueue[int] = SimpleQueue()
    for start, piece in pieces.items():
        if piece.exists():
            progress.done += min(PIECE, num_rows - start)
        else:
            waiting.put(start)

    def work(_: int) -> None:
        # A process of its own, told over a pipe: a fork would copy the locks of this process's
        # threads, and a spawned one would run the user's script again. It ends when the pipe does,
        # so that it cannot outlive this one.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from medray.data import minhash; "
            "minhash.serve()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as worker:
            assert worker.stdin is not None
            assert worker.stdout is not None
            while (start := _next(waiting)) is not None:
                asked = {
                    "path": str(path),
                    "start": start,
                    "stop": start + PIECE,
                    "width": width,
                    "piece": str(pieces[start]),
                }
                _ask(worker.stdin, asked)
                if not worker.stdout.readline():
                    raise DataError(
                        f"{path}: the process that compares rows from {start} on ended with "
                        f"status {worker.wait()}"
                    )
                told.put(min(PIECE, num_rows - start))
            worker.stdin.close()

    told: SimpleQueue[int] = SimpleQueue()
    count = min(cores or num_cores(), max(1, waiting.qsize()))
    if not waiting.empty():
        with ThreadPoolExecutor(count) as pool:
            running = [pool.submit(work, number) for number in range(count)]
            try:
                _follow(told, progress, lambda: all(future.done() for future in running))
            finally:
                while (
                    _next(waiting) is not None
                ):  # of an interrupted run, nobody starts another piece
                    pass
            for future in running:
                future.result()
    return Signatures(list(pieces.values()))


def serve() -> None:
    """A worker's life: pieces are named on standard input, each is answered by a line when it is on
    disk."""
    signer = Signer()
    for line in sys.stdin:
        asked = json.loads(line)
        examples = Examples.open(Path(asked["path"]))
        texts = examples[asked["start"] : asked["stop"]].texts()
        place = Path(asked["piece"])
        half = place.with_suffix(f".{os.getpid()}")
        with half.open("wb") as file:
            np.save(file, signer.sign(texts, asked["width"]))
        half.replace(place)
        print("done", flush=True)


def _next(waiting: "SimpleQueue[int]") -> int | None:
    try:
        return waiting.get_nowait()
    except Empty:
        return None


def _ask(pipe: IO[str], asked: dict[str, object]) -> None:
    try:
        pipe.write(json.dumps(asked) + "\n")
        pipe.flush()
    except BrokenPipeError:
        pass  # it ended: reading its answer tells


def _follow(told: "SimpleQueue[int]", progress: Meter, is_over: Callable[[], bool]) -> None:
    while not (is_over() and told.empty()):
        try:
            progress.add(told.get(timeout=0.2))
        except Empty:
            continue
