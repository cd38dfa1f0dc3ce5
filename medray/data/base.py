"""What a data set is made of: examples as read from disk, encoded rows, and Prepared, the table of them."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.ipc

from medray.errors import ConfigError, DataError
from medray.schema import PluginOptions

if TYPE_CHECKING:
    from medray.data.formats.base import Layout

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Mention:
    """A span of a text that names something: `text[start:end]`, in characters."""

    start: int
    end: int
    text: str
    kind: str
    confidence: float | None = None  # of one that a model found


@dataclass(frozen=True, slots=True)
class Message:
    """What one side of a conversation says."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One raw record. Everything that is neither text nor label is metadata."""

    id: str
    text: str
    labels: tuple[str, ...] = ()
    split: str | None = None  # as given on disk, where the data says
    metadata: Mapping[str, str] = field(default_factory=dict)
    where: str = ""  # file:line, for messages
    mentions: tuple[Mention, ...] = ()  # in the order of the text; their kinds are its labels
    turns: tuple[Message, ...] = ()  # of a conversation, up to what is to be answered; without any the text is the one turn
    response: str = ""  # the answer that is right, in words

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> "Example":
        """From what `asdict` made, after JSON."""
        mentions = tuple(Mention(**mention) for mention in held["mentions"])
        turns = tuple(Message(**turn) for turn in held["turns"])
        return cls(**{**held, "labels": tuple(held["labels"]), "mentions": mentions, "turns": turns})

    def unlabelled(self) -> "Example":
        """Without the answer that is right."""
        return replace(self, labels=(), mentions=(), response="")


class Format(Protocol):
    """A file of medray/data/formats: its `Options`, and these functions."""

    def read(self, options: Any) -> Iterator[Example]: ...

    def write(self, examples: Iterable[Example], options: Any) -> None: ...

    def check(self, options: Any) -> list[str]:
        """What is wrong, as far as the first row tells."""
        ...

    def sniff(self, path: Path) -> "Layout | None":
        """What a file or folder of this layout holds; None where it is of another."""
        ...


def read(options: PluginOptions) -> Iterator[Example]:
    """What lies elsewhere is pulled to this machine first."""
    from medray import plugins
    from medray.data.remote import localised

    yield from plugins.find("data.formats", options.name).read(localised(options))


def is_left_out(example: Example, options: PluginOptions) -> bool:
    """Whether a row has no label and its options say that such rows are left out."""
    return not example.labels and getattr(options, "drop_unlabelled", False)


def check(options: PluginOptions) -> list[str]:
    """What is wrong, as far as the first row tells."""
    from medray import plugins
    from medray.data.remote import localised

    try:
        found: list[str] = plugins.find("data.formats", options.name).check(localised(options))
    except (ConfigError, DataError) as err:  # there is nothing to be pulled
        return [f"data.format: {str(err).removeprefix('data.format: ')}"]
    return found


def write(examples: Sequence[Example], options: PluginOptions) -> None:
    """Refused where the format would lose what the examples hold."""
    from medray import plugins
    from medray.data.formats._mentions import MentionOptions

    annotated = next((example for example in examples if example.mentions), None)
    if annotated and not isinstance(options, MentionOptions):
        raise DataError(f"{annotated.where or annotated.id}: has mentions, which {options.name} does not hold; spans and pubtator do")
    plugins.find("data.formats", options.name).write(examples, options)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row as a model reads it. A long text may give several (windows); they share the row_id."""

    row_id: str
    tokens: tuple[int, ...]
    target: tuple[int, ...]  # what the task's loss compares with: a class, the active classes, or a position
    truncated: bool = False


SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("length", pa.int32()),
        ("target", pa.list_(pa.int32())),
        ("split", pa.string()),
        ("slice", pa.string()),  # the example's metadata as JSON
    ]
)


class Prepared:
    """Encoded rows in Arrow, addressed by the fingerprint of the data, the split, the task and the tokenizer."""

    def __init__(self, table: pa.Table, fingerprint: str) -> None:
        self.table = table
        self.fingerprint = fingerprint

    @classmethod
    def of(cls, rows: Iterable[tuple[Encoded, Split, Mapping[str, str]]], fingerprint: str) -> "Prepared":
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
        table = pa.table(columns, schema=SCHEMA.with_metadata({"fingerprint": fingerprint, "truncated": json.dumps(truncated)}))
        return cls(table, fingerprint)

    @property
    def num_truncated(self) -> dict[str, int]:
        """Rows of each split whose text was cut to fit."""
        found: dict[str, int] = json.loads(self.table.schema.metadata[b"truncated"])
        return found

    @classmethod
    def open(cls, path: Path) -> "Prepared":
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        return cls(table, table.schema.metadata[b"fingerprint"].decode())

    def save(self, path: Path) -> None:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, self.table.schema) as writer:
            writer.write_table(self.table)

    def split(self, split: Split) -> "Rows":
        is_of = pa.compute.equal(self.table["split"], split)
        places = np.flatnonzero(is_of.to_numpy())
        is_run = len(places) > 0 and places[-1] - places[0] == len(places) - 1
        # Rows of a split follow each other as they are made: a part of the mapped file, where a filter would copy it.
        return Rows(self.table.slice(int(places[0]), len(places)) if is_run else self.table.filter(is_of))

    @classmethod
    def join(cls, pieces: Sequence[Path], fingerprint: str, path: Path) -> None:
        """One file of several, a batch at a time."""
        opened = [cls.open(piece) for piece in pieces]
        truncated = {split: sum(piece.num_truncated[split] for piece in opened) for split in SPLITS}
        schema = SCHEMA.with_metadata({"fingerprint": fingerprint, "truncated": json.dumps(truncated)})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for piece in opened:
                writer.write_table(piece.table.replace_schema_metadata(schema.metadata))


class Rows:
    """The rows of one split, read by position; tokens and targets stay in the table, which may be a mapped file."""

    def __init__(self, table: pa.Table) -> None:
        self.ids: list[str] = table["row_id"].to_pylist()
        self.lengths: npt.NDArray[np.int64] = table["length"].to_numpy().astype(np.int64)
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

    def _at(self, chunks: Sequence[pa.ListArray], position: int) -> pa.ListScalar:
        chunk = int(np.searchsorted(self._starts, position, side="right")) - 1
        return chunks[chunk][position - int(self._starts[chunk])]
