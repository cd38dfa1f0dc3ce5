"""Examples in a memory-mapped file: millions of texts take no memory of the process.

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

from medray.types import Example, Mention, Message, Question

Positions = npt.NDArray[np.int64]
BATCH = 2048
_NONE: Mapping[str, str] = {}
# Mentions, turns, response, questions and answers of a row without them.
_NO_MORE: list[Any] = [(), (), "", (), ()]
# Bytes, because a text may hold half of a surrogate pair, which Arrow's strings refuse.
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
        for rows, batch in self._chunks():
            ids, texts, rests = (batch.column(number).to_pylist() for number in range(3))
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
        return list, (list(self),)  # a process on another machine does not have the file

    def take(self, positions: Sequence[int] | Positions) -> "Examples":
        places = np.asarray(positions, dtype=np.int64)
        is_in_file = places < len(self._positions)
        assert is_in_file[: is_in_file.sum()].all(), "examples of the tail must be last"
        tail = tuple(self._tail[at - len(self._positions)] for at in places[~is_in_file])
        return self._replace(positions=self._positions[places[is_in_file]], tail=tail)

    def texts(self) -> "Texts":
        return Texts(self)

    def outlines(self, metadata: str | None = None) -> Iterator[Example]:
        """Yield the examples without texts and with at most one value of metadata, so that all of
        them fit into memory."""
        label_sets: dict[tuple[str, ...], tuple[str, ...]] = {}
        for rows, batch in self._chunks():
            for row, row_id, rest in zip(
                rows, batch.column(0).to_pylist(), batch.column(2).to_pylist(), strict=True
            ):
                whole = self._example(row, _text(row_id), "", rest)
                own_metadata = _NONE if metadata is None else whole.metadata
                if metadata is not None and metadata in own_metadata:
                    own_metadata = {metadata: own_metadata[metadata]}
                side = whole.split and sys.intern(whole.split)
                yield Example(
                    whole.id,
                    "",
                    label_sets.setdefault(whole.labels, whole.labels),
                    side,
                    own_metadata,
                    whole.where,
                )
        yield from (replace(example, text="") for example in self._tail)

    def without_answers(self) -> "Examples":
        return self._replace(
            is_unlabelled=True, tail=tuple(example.without_answer() for example in self._tail)
        )

    def with_labels(self, labels: Mapping[int, tuple[str, ...]]) -> "Examples":
        return self._replace(
            labels={
                **self._labels,
                **{int(self._positions[at]): row_labels for at, row_labels in labels.items()},
            }
        )

    def followed_by(self, tail: Sequence[Example]) -> "Examples":
        return self._replace(tail=(*self._tail, *tail))

    def _replace(self, **changes: Any) -> "Examples":
        arguments = {
            "positions": self._positions,
            "labels": self._labels,
            "tail": self._tail,
            "is_unlabelled": self._is_unlabelled,
        }
        return Examples(self.path, self._batches, **{**arguments, **changes})

    def _chunks(self) -> Iterator[tuple[list[int], pa.RecordBatch]]:
        """Yield the positions of rows that are in one batch of the file, with the rows."""
        edges = np.flatnonzero(np.diff(self._positions // BATCH)) + 1
        for start, end in pairwise(
            [0, *edges.tolist(), len(self._positions)] if len(self._positions) else []
        ):
            rows = self._positions[start:end]
            number, first = divmod(int(rows[0]), BATCH)
            is_run = int(rows[-1]) - int(rows[0]) == end - start - 1 and bool(
                (np.diff(rows) == 1).all()
            )
            batch = self._batches[number]
            yield (
                rows.tolist(),
                batch.slice(first, end - start)
                if is_run
                else batch.take(pa.array(rows - number * BATCH)),
            )

    def _example(self, row: int, row_id: str, text: str, rest: bytes) -> Example:
        labels, split, metadata, where, *more = json.loads(rest)
        more += _NO_MORE[len(more) :]
        mentions, turns, response, questions, answers = more
        example = Example(
            row_id,
            text,
            self._labels.get(row, tuple(labels)),
            split,
            metadata,
            where,
            tuple(Mention(**mention) for mention in mentions),
            tuple(Message(**turn) for turn in turns),
            response,
            tuple(map(Question.from_dict, questions)),
            tuple(map(tuple, answers)),
        )
        return example.without_answer() if self._is_unlabelled else example


class Texts(Sequence[str]):
    """The texts of examples in a file."""

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
    """Write the examples to a file, which appears only when it is complete."""
    half = path.with_name(f".{path.name}.{os.getpid()}")
    with pa.OSFile(str(half), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as file:
        columns: tuple[list[bytes], ...] = ([], [], [])
        for example in examples:
            for column, value in zip(
                columns, (_bytes(example.id), _bytes(example.text), _rest(example)), strict=True
            ):
                column.append(value)
            if len(columns[0]) == BATCH:
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
    """Return the examples in memory; those of a file without their texts."""
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
    """Return the examples with other labels at some positions."""
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
    fields: list[Any] = [example.labels, example.split, dict(example.metadata), example.where]
    if example.mentions or example.turns or example.response or example.questions:
        fields += [
            [asdict(mention) for mention in example.mentions],
            [asdict(turn) for turn in example.turns],
            example.response,
        ]
    if example.questions:
        fields += [[asdict(question) for question in example.questions], example.answers]
    return json.dumps(fields).encode()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")
