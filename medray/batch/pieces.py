"""An input cut into pieces, the same ones at every start: a piece is predicted, written and counted
as a whole."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from medray.batch import rows
from medray.batch.rows import Row
from medray.batch.shards import Columns, Shard

_MOST_CHARACTERS = 8_000_000  # of a piece, whatever its rows
_LEAST_ROWS, _MOST_ROWS = 64, 4096
_PIECES_A_WORKER = 16  # so that the last ones end at about the same time
REPEATED = "repeated id"
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
    rows: tuple[Row, ...]

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
    def of(cls, held: dict[str, Any]) -> Self:
        return cls(held["shard"], held["number"], tuple(Row(**row) for row in held["rows"]))


def num_rows(total: int, num_workers: int) -> int:
    """Rows of a piece."""
    return min(max(-(-total // (num_workers * _PIECES_A_WORKER)), _LEAST_ROWS), _MOST_ROWS)


@dataclass(frozen=True)
class Scan:
    """What is known of a shard before a row of it is answered."""

    # 128 bits of every id, in order: what is needed to find the ones that repeat, in little memory
    ids: Hashes
    num_bad: int  # rows that cannot be answered
    example: str = ""  # where the first of them stands, and why


def scan(
    shard: Shard, columns: Columns, most_characters: int, most_rows: int | None = None
) -> Scan:
    """Reads every row once, or the first ones; of parquet the ids alone, since its texts are far
    longer."""
    rows.check_columns(shard, columns)
    has_texts = shard.form != "parquet"
    digests, num_bad, example = bytearray(), 0, ""
    asked = columns if has_texts else replace(columns, text=())
    for row in islice(rows.read(shard, asked, most_characters), most_rows):
        digests += hashlib.blake2b(row.id.encode("utf-8"), digest_size=16).digest()
        if row.fault and has_texts:
            num_bad += 1
            example = example or f"{row.where}: {row.reason}"
    return Scan(np.frombuffer(bytes(digests), dtype=np.uint64).reshape(-1, 2), num_bad, example)


def repeats(found: Sequence[Hashes]) -> list[list[int]]:
    """For each shard the places of ids that stand before, in it or in an earlier one."""
    if not found:
        return []
    every = np.concatenate(found)
    order = np.lexsort((every[:, 1], every[:, 0]))  # stable: of equal ids the first comes first
    places = np.sort(order[1:][(every[order[1:]] == every[order[:-1]]).all(axis=1)])
    ends = np.cumsum([len(each) for each in found])
    owners = np.searchsorted(ends, places, side="right")
    starts = np.concatenate([[0], ends[:-1]])
    return [(places[owners == shard] - starts[shard]).tolist() for shard in range(len(found))]


def cut(found: Iterable[Row], shard: int, size: int, repeated: Iterable[int]) -> Iterator[Piece]:
    again = set(repeated)
    held: list[Row] = []
    number = characters = 0
    for place, row in enumerate(found):
        if place in again:
            row = replace(row, text="", fault=REPEATED, reason="the id stands in an earlier row")
        held.append(row)
        characters += len(row.text)
        if len(held) == size or characters > _MOST_CHARACTERS:
            yield Piece(shard, number, tuple(held))
            held, characters, number = [], 0, number + 1
    if held:
        yield Piece(shard, number, tuple(held))
