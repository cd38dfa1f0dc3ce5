"""Encoded rows in Arrow, written once per study and tokenizer and read by position."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.ipc

from medray.types import SPLITS, Encoded, Split

SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("length", pa.int32()),
        ("target", pa.list_(pa.int32())),
        ("split", pa.string()),
        ("slice", pa.string()),  # the example's metadata as JSON
        ("text_length", pa.int32()),  # tokens of the whole text, null if not counted
        ("offsets", pa.list_(pa.int32())),  # of validation rows, which an evaluation reads
    ]
)


class Prepared:
    """A table of encoded rows. Its fingerprint covers the data, the split, the task and the
    tokenizer."""

    def __init__(self, table: pa.Table, fingerprint: str) -> None:
        self.table = table
        self.fingerprint = fingerprint

    @classmethod
    def of(
        cls, rows: Iterable[tuple[Encoded, Split, Mapping[str, str]]], fingerprint: str
    ) -> "Prepared":
        columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        truncated: dict[str, int] = dict.fromkeys(SPLITS, 0)
        for row, split, metadata in rows:
            truncated[split] += row.truncated
            columns["row_id"].append(row.row_id)
            columns["tokens"].append(row.tokens)
            columns["length"].append(len(row.tokens))
            columns["target"].append(row.target)
            columns["split"].append(split)
            columns["slice"].append(json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False))
            columns["text_length"].append(row.text_length)
            columns["offsets"].append(row.offsets if split == "validation" else None)
        table = pa.table(
            columns,
            schema=SCHEMA.with_metadata(
                {"fingerprint": fingerprint, "truncated": json.dumps(truncated)}
            ),
        )
        return cls(table, fingerprint)

    @property
    def num_truncated(self) -> dict[str, int]:
        """The number of rows per split whose text was truncated."""
        counts: dict[str, int] = json.loads(self.table.schema.metadata[b"truncated"])
        return counts

    @classmethod
    def open(cls, path: Path) -> "Prepared":
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        for name in ("text_length", "offsets"):
            if name not in table.column_names:  # in tables of an earlier medray
                field = SCHEMA.field(name)
                table = table.append_column(field, pa.nulls(len(table), field.type))
        return cls(table, table.schema.metadata[b"fingerprint"].decode())

    def save(self, path: Path) -> None:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, self.table.schema) as writer:
            writer.write_table(self.table)

    def split(self, split: Split) -> "EncodedSplit":
        is_of = pa.compute.equal(self.table["split"], split)
        places = np.flatnonzero(is_of.to_numpy())
        is_run = len(places) > 0 and places[-1] - places[0] == len(places) - 1
        # Rows of a split are usually consecutive: a slice maps the file, and a filter would copy.
        return EncodedSplit(
            self.table.slice(int(places[0]), len(places)) if is_run else self.table.filter(is_of)
        )

    @classmethod
    def join(cls, pieces: Sequence[Path], fingerprint: str, path: Path) -> None:
        """Join the files of several tables into one, a table at a time."""
        tables = [cls.open(piece) for piece in pieces]
        truncated = {split: sum(piece.num_truncated[split] for piece in tables) for split in SPLITS}
        schema = SCHEMA.with_metadata(
            {"fingerprint": fingerprint, "truncated": json.dumps(truncated)}
        )
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for piece in tables:
                writer.write_table(piece.table.replace_schema_metadata(schema.metadata))


class EncodedSplit:
    """The rows of one split, read by position. Tokens and targets stay in the table, which may be
    a mapped file."""

    def __init__(self, table: pa.Table) -> None:
        self.ids: list[str] = table["row_id"].to_pylist()
        self.lengths: npt.NDArray[np.int64] = table["length"].to_numpy().astype(np.int64)
        self._text_lengths, self._offsets = table["text_length"], table["offsets"]
        self._tokens, self._targets = table["tokens"].chunks, table["target"].chunks
        self._starts = np.cumsum([0, *map(len, self._tokens)])

    def __len__(self) -> int:
        return len(self.ids)

    def tokens(self, position: int) -> npt.NDArray[np.int32]:
        values: npt.NDArray[np.int32] = self._at(self._tokens, position).values.to_numpy()
        return values

    def target(self, position: int) -> tuple[int, ...]:
        return tuple(self._at(self._targets, position).as_py())

    def targets(self) -> Sequence[tuple[int, ...]]:
        return [tuple(target) for chunk in self._targets for target in chunk.to_pylist()]

    def rows_of(self, ids: Iterable[str]) -> list[Encoded]:
        """Return the rows of these examples, all windows of each."""
        return [
            Encoded(
                row_id,
                tuple(self.tokens(position).tolist()),
                self.target(position),
                offsets=self._offsets_of(position),
            )
            for row_id in ids
            for position in self._positions[row_id]
        ]

    def _offsets_of(self, position: int) -> tuple[int, ...] | None:
        offsets = self._offsets[position].as_py()
        return None if offsets is None else tuple(offsets)

    @cached_property
    def _positions(self) -> Mapping[str, Sequence[int]]:
        positions = defaultdict(list)
        for position, row_id in enumerate(self.ids):
            positions[row_id].append(position)
        return dict(positions)

    def text_lengths(self) -> npt.NDArray[np.int32]:
        """Return the number of tokens of each whole text, once for all its windows; -1 if it
        was not counted."""
        lengths: npt.NDArray[np.int32] = pa.compute.fill_null(self._text_lengths, -1).to_numpy()
        ids = np.array(self.ids, dtype=object)
        is_first = np.ones(len(ids), dtype=np.bool_)
        is_first[1:] = ids[1:] != ids[:-1]
        return lengths[is_first]

    def _at(self, chunks: Sequence[pa.ListArray], position: int) -> pa.ListScalar:
        chunk = int(np.searchsorted(self._starts, position, side="right")) - 1
        return chunks[chunk][position - int(self._starts[chunk])]
