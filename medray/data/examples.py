"""Examples that lie in a file and are mapped, not read: millions of texts take no memory of the
process, the system pages them in.

A list of examples may stand wherever these do: `take`, `with_labels` and the like accept both."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from medray.types import Example, Mention, Message

Positions = npt.NDArray[np.int64]
_BATCH = 2048
_NONE: Mapping[str, str] = {}
# Bytes, because a text may hold half of a surrogate pair, which Arrow's strings do not.
_SCHEMA = pa.schema(
    [("id", pa.large_binary()), ("text", pa.large_binary()), ("rest", pa.large_binary())]
)


class Examples(Sequence[Example]):
    def __init__(
        self,
        path: Path,
        batches: Sequence[pa.RecordBatch],
        positions: Positions,
        labels: Mapping[int, tuple[str, ...]] | None = None,
        tail: tuple[Example, ...] = (),
        is_unlabelled: bool = False,
    ) -> None:
        self.path = path
        self._batches, self._positions, self._labels, self._tail, self._is_unlabelled = (
            batches,
            positions,
            labels or {},
            tail,
            is_unlabelled,
        )

    @classmethod
    def open(cls, path: Path) -> "Examples":
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [file.get_batch(number) for number in range(file.num_record_batches)]
        return cls(path, batches, np.arange(sum(map(len, batches)), dtype=np.int64))

    def __len__(self) -> int:
        return len(self._positions) + len(self._tail)

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> "Examples": ...
    def __getitem__(self, at: int | slice) -> "Example | Examples":
        if isinstance(at, slice):
            return self.take(np.arange(len(self))[at])
        if not -len(self) <= at < len(self):
            raise IndexError(f"example {at} of {len(self)}")
        return next(iter(self.take(np.array([at % len(self)]))))

    def __iter__(self) -> Iterator[Example]:
        for rows, chosen in self._chunks():
            ids, texts, rests = (chosen.column(number).to_pylist() for number in range(3))
            for row, row_id, text, rest in zip(rows, ids, texts, rests, strict=True):
                yield self._example(row, _text(row_id), _text(text), rest)
        yield from self._tail

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)  # for another process, on a machine that has no such file

    def take(self, positions: Sequence[int] | Positions) -> "Examples":
        chosen = np.asarray(positions, dtype=np.int64)
        held = chosen < len(self._positions)
        assert held[: held.sum()].all(), "examples of the tail come last"
        tail = tuple(self._tail[at - len(self._positions)] for at in chosen[~held])
        return self._changed(positions=self._positions[chosen[held]], tail=tail)

    def texts(self) -> "Texts":
        return Texts(self)

    def outlines(self, metadata: str | None = None) -> Iterator[Example]:
        """Without texts, and of the metadata one value: what is light enough to hold for every
        row."""
        known: dict[tuple[str, ...], tuple[str, ...]] = {}
        for rows, chosen in self._chunks():
            for row, row_id, rest in zip(
                rows, chosen.column(0).to_pylist(), chosen.column(2).to_pylist(), strict=True
            ):
                whole = self._example(row, _text(row_id), "", rest)
                kept = _NONE if metadata is None else whole.metadata
                if metadata is not None and metadata in kept:
                    kept = {metadata: kept[metadata]}
                side = whole.split and sys.intern(whole.split)
                yield Example(
                    whole.id,
                    "",
                    known.setdefault(whole.labels, whole.labels),
                    side,
                    kept,
                    whole.where,
                )
        yield from (replace(example, text="") for example in self._tail)

    def without_answers(self) -> "Examples":
        return self._changed(
            is_unlabelled=True, tail=tuple(example.without_answer() for example in self._tail)
        )

    def with_labels(self, labels: Mapping[int, tuple[str, ...]]) -> "Examples":
        return self._changed(
            labels={
                **self._labels,
                **{int(self._positions[at]): given for at, given in labels.items()},
            }
        )

    def followed_by(self, tail: Sequence[Example]) -> "Examples":
        return self._changed(tail=(*self._tail, *tail))

    def _changed(self, **changes: Any) -> "Examples":
        held = {
            "positions": self._positions,
            "labels": self._labels,
            "tail": self._tail,
            "is_unlabelled": self._is_unlabelled,
        }
        return Examples(self.path, self._batches, **{**held, **changes})

    def _chunks(self) -> Iterator[tuple[list[int], pa.RecordBatch]]:
        """Rows that follow each other and lie in one batch, some at a time."""
        edges = np.flatnonzero(np.diff(self._positions // _BATCH)) + 1
        for start, end in pairwise(
            [0, *edges.tolist(), len(self._positions)] if len(self._positions) else []
        ):
            rows = self._positions[start:end]
            number, first = divmod(int(rows[0]), _BATCH)
            is_run = int(rows[-1]) - int(rows[0]) == end - start - 1 and bool(
                (np.diff(rows) == 1).all()
            )
            batch = self._batches[number]
            yield (
                rows.tolist(),
                batch.slice(first, end - start)
                if is_run
                else batch.take(pa.array(rows - number * _BATCH)),
            )

    def _example(self, row: int, row_id: str, text: str, rest: bytes) -> Example:
        labels, split, metadata, where, *more = json.loads(rest)
        mentions, turns, response = more or ((), (), "")
        found = Example(
            row_id,
            text,
            self._labels.get(row, tuple(labels)),
            split,
            metadata,
            where,
            tuple(Mention(**mention) for mention in mentions),
            tuple(Message(**turn) for turn in turns),
            response,
        )
        return found.without_answer() if self._is_unlabelled else found


class Texts(Sequence[str]):
    """The texts of examples that lie in a file."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> "Texts": ...
    def __getitem__(self, at: int | slice) -> "str | Texts":
        return Texts(self._examples[at]) if isinstance(at, slice) else self._examples[at].text

    def __iter__(self) -> Iterator[str]:
        for example in self._examples:
            yield example.text


def write(examples: Iterable[Example], path: Path) -> None:
    """The file appears whole."""
    half = path.with_name(f".{path.name}.{os.getpid()}")
    with pa.OSFile(str(half), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as file:
        columns: tuple[list[bytes], ...] = ([], [], [])
        for example in examples:
            for column, value in zip(
                columns, (_bytes(example.id), _bytes(example.text), _rest(example)), strict=True
            ):
                column.append(value)
            if len(columns[0]) == _BATCH:
                file.write_batch(_batch(columns))
                columns = ([], [], [])
        if columns[0]:
            file.write_batch(_batch(columns))
    half.replace(path)


def take(examples: Sequence[Example], positions: Sequence[int] | Positions) -> Sequence[Example]:
    return (
        examples.take(positions)
        if isinstance(examples, Examples)
        else [examples[at] for at in positions]
    )


def texts(examples: Sequence[Example]) -> Sequence[str]:
    return (
        examples.texts()
        if isinstance(examples, Examples)
        else [example.text for example in examples]
    )


def outlines(examples: Sequence[Example], metadata: str | None = None) -> Sequence[Example]:
    """In memory, and of a file without texts."""
    return list(examples.outlines(metadata)) if isinstance(examples, Examples) else examples


def without_answers(examples: Sequence[Example]) -> Sequence[Example]:
    return (
        examples.without_answers()
        if isinstance(examples, Examples)
        else [example.without_answer() for example in examples]
    )


def with_labels(
    examples: Sequence[Example], labels: Mapping[int, tuple[str, ...]]
) -> Sequence[Example]:
    """With other labels at some positions."""
    if isinstance(examples, Examples):
        return examples.with_labels(labels)
    return [
        replace(example, labels=labels[at]) if at in labels else example
        for at, example in enumerate(examples)
    ]


def followed_by(examples: Sequence[Example], tail: Sequence[Example]) -> Sequence[Example]:
    return examples.followed_by(tail) if isinstance(examples, Examples) else [*examples, *tail]


def _batch(columns: tuple[list[bytes], ...]) -> pa.RecordBatch:
    return pa.record_batch(
        [pa.array(column, pa.large_binary()) for column in columns], schema=_SCHEMA
    )


def _rest(example: Example) -> bytes:
    held: list[Any] = [example.labels, example.split, dict(example.metadata), example.where]
    if example.mentions or example.turns or example.response:
        held += [
            [asdict(mention) for mention in example.mentions],
            [asdict(turn) for turn in example.turns],
            example.response,
        ]
    return json.dumps(held).encode()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(held: bytes) -> str:
    return held.decode("utf-8", "surrogatepass")
