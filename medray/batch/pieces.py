"""Pieces of an input, the same at each start. A piece is predicted, written and counted as a
whole."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from medray.batch import rows
from medray.batch.rows import InputRow
from medray.batch.shards import Shard, TextColumns

_MOST_CHARACTERS = 8_000_000  # of a piece
_LEAST_ROWS, _MOST_ROWS = 64, 4096
_PIECES_PER_WORKER = 16  # so that all workers end at about the same time
REPEATED_ID = "repeated id"
_ROW = pa.struct(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("where", pa.string()),
        ("is_made", pa.bool_()),
        ("fault", pa.string()),
        ("reason", pa.string()),
    ]
)
SCHEMA = pa.schema([("shard", pa.int32()), ("number", pa.int32()), ("rows", pa.list_(_ROW))])
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Piece:
    shard: int
    number: int  # in its shard
    rows: tuple[InputRow, ...]

    def table(self) -> pa.Table:
        return pa.Table.from_pylist(
            [
                {
                    "shard": self.shard,
                    "number": self.number,
                    "rows": [asdict(row) for row in self.rows],
                }
            ],
            schema=SCHEMA,
        )

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        rows = tuple(InputRow(**row) for row in values["rows"])
        return cls(values["shard"], values["number"], rows)


def num_rows(total: int, num_workers: int) -> int:
    """Return the number of rows per piece."""
    return min(max(-(-total // (num_workers * _PIECES_PER_WORKER)), _LEAST_ROWS), _MOST_ROWS)


@dataclass(frozen=True)
class Scan:
    """The rows of a shard, after a first pass over them."""

    # 128 bits of each id, in order: enough to find repeats, in little memory.
    ids: Hashes
    num_bad: int  # rows that cannot be predicted
    example: str = ""  # place and reason of the first of them


def scan(
    shard: Shard, columns: TextColumns, most_characters: int, most_rows: int | None = None
) -> Scan:
    """Read each row once, or the first rows. Of parquet, read the ids alone: its texts are far
    longer."""
    rows.check_columns(shard, columns)
    has_texts = shard.form != "parquet"
    digests, num_bad, example = bytearray(), 0, ""
    needs = columns if has_texts else replace(columns, text=())
    for row in islice(rows.read(shard, needs, most_characters), most_rows):
        digests += hashlib.blake2b(row.id.encode("utf-8"), digest_size=16).digest()
        if row.fault and has_texts:
            num_bad += 1
            example = example or f"{row.where}: {row.reason}"
    return Scan(np.frombuffer(bytes(digests), dtype=np.uint64).reshape(-1, 2), num_bad, example)


def repeats(ids: Sequence[Hashes]) -> list[list[int]]:
    """Return, per shard, the positions of ids that an earlier row has, in any shard."""
    if not ids:
        return []
    every = np.concatenate(ids)
    order = np.lexsort((every[:, 1], every[:, 0]))  # stable: equal ids keep their order
    places = np.sort(order[1:][(every[order[1:]] == every[order[:-1]]).all(axis=1)])
    ends = np.cumsum([len(each) for each in ids])
    owners = np.searchsorted(ends, places, side="right")
    starts = np.concatenate([[0], ends[:-1]])
    return [(places[owners == shard] - starts[shard]).tolist() for shard in range(len(ids))]


def cut(
    shard_rows: Iterable[InputRow], shard: int, size: int, repeats: Iterable[int]
) -> Iterator[Piece]:
    """Yield pieces of `size` rows. A row whose id repeats gets a fault instead of its text."""
    places = set(repeats)
    piece: list[InputRow] = []
    number = characters = 0
    for place, row in enumerate(shard_rows):
        if place in places:
            row = replace(row, text="", fault=REPEATED_ID, reason="an earlier row has the same id")
        piece.append(row)
        characters += len(row.text)
        if len(piece) == size or characters > _MOST_CHARACTERS:
            yield Piece(shard, number, tuple(piece))
            piece, characters, number = [], 0, number + 1
    if piece:
        yield Piece(shard, number, tuple(piece))
