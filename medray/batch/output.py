"""What is written: parts of answers, parts of rows that were set aside, a note for each finished
piece, and a summary last.

Everything is created once and whole, under a name that follows from the piece. So a piece that is
done twice, by a retry or by a run that goes on, is there once; and without its note it counts as
not done."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator

from medray.batch.rows import Row
from medray.config.schema import Section
from medray.errors import ArtifactError, ConfigError
from medray.errors.redaction import redact
from medray.evaluation.calibration import is_multi_label
from medray.storage.store import Store
from medray.tasks.base.protocol import Task
from medray.text.csv_text import write_table
from medray.types import Prediction

Form = Literal["parquet", "jsonl", "csv"]
RUN, SUMMARY = "_run.json", "_summary.json"
_DONE, _ASIDE = "_done", "_set_aside"
_MENTION = pa.struct(
    [("start", pa.int64()), ("end", pa.int64()), ("text", pa.string()), ("kind", pa.string())]
)


class Record(Section):
    """What a run began with; one that goes on must ask the same."""

    medray: str
    release: str
    version: int
    content_id: str
    input: Annotated[str, AfterValidator(redact)]
    fingerprint: str
    text_columns: tuple[str, ...]
    id_column: str | None
    most_characters: int
    token_budget: int
    precision: str
    form: Form
    piece_rows: int
    encoding: str = "utf-8"
    delimiter: str | None = None


class Summary(Section):
    """Written last: an output without it is not whole."""

    run: Record
    precision: str  # that was used
    rows: int
    answered: int
    set_aside: int
    reasons: dict[str, int]  # of rows that were set aside
    made_ids: int  # rows without an id of their own
    parts: int


@dataclass(frozen=True)
class Note:
    """What is kept of a finished piece: its name says all, so that a listing is enough."""

    shard: int
    number: int
    answered: int
    set_aside: int
    made_ids: int

    @property
    def name(self) -> str:
        name = _name(self.shard, self.number)
        return f"{_DONE}/{name}.{self.answered}.{self.set_aside}.{self.made_ids}"

    @classmethod
    def of(cls, name: str) -> "Note":
        piece, *counts = name.split(".")
        return cls(*map(int, [*piece.split("-"), *counts]))


class Output:
    def __init__(self, store: Store, form: Form) -> None:
        self.store, self.form = store, form

    def begin(self, record: Record, *, resume: bool) -> Record:
        """Claim the place, or find the record of the run that goes on. Rows of a piece stay as that
        run cut them."""
        if self.store.names("") and RUN not in self.store.names(""):
            raise ConfigError(
                f"{self.store.uri}: is there already and is no output of medray; choose another "
                "--output"
            )
        if self.store.create(RUN, record.model_dump_json(indent=1).encode()):
            return record
        if not resume:
            raise ConfigError(
                f"{self.store.uri}: is there already and is left alone; choose another --output, "
                "or go on with it by --resume"
            )
        with self._written(RUN):
            begun = Record.model_validate_json(self.store.read(RUN))
        wanted = record.model_dump() | {"piece_rows": begun.piece_rows}
        for name, value in begun.model_dump().items():
            if value != wanted[name]:
                raise ConfigError(
                    f"{self.store.uri}: was begun with {name} {value!r} and cannot go on with "
                    f"{wanted[name]!r}"
                )
        return begun

    def summary(self) -> Summary | None:
        if SUMMARY not in self.store.names(""):
            return None
        with self._written(SUMMARY):
            return Summary.model_validate_json(self.store.read(SUMMARY))

    def agree(self, name: str, value: str) -> str:
        """What the first of all workers, in this run or in one before it, decided."""
        return (
            value
            if self.store.create(f"_{name}", value.encode())
            else self.store.read(f"_{name}").decode()
        )

    def notes(self) -> list[Note]:
        found = []
        for name in self.store.names(_DONE):
            with self._written(f"{_DONE}/{name}"):
                found.append(Note.of(name))
        return found

    def write(
        self, shard: int, number: int, table: pa.Table, aside: Sequence[Row], made_ids: int
    ) -> Note:
        name = _name(shard, number)
        if table.num_rows:
            self.store.create(f"part-{name}.{self.form}", encode(table, self.form))
        if aside:
            lines = [
                {"id": row.id, "where": row.where, "kind": row.fault, "reason": row.reason}
                for row in aside
            ]
            content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            self.store.create(f"{_ASIDE}/part-{name}.jsonl", content.encode())
        note = Note(shard, number, table.num_rows, len(aside), made_ids)
        self.store.create(note.name, b"")
        return note

    def set_aside(self) -> Iterator[dict[str, str]]:
        for name in self.store.names(_ASIDE):
            with self._written(f"{_ASIDE}/{name}"):
                lines = self.store.read(
                    f"{_ASIDE}/{name}"
                ).splitlines()  # as bytes: texts break lines in more places
                found = [json.loads(line) for line in lines]
            yield from found

    @contextmanager
    def _written(self, name: str) -> Iterator[None]:
        """What reading a file of this output raises where it was damaged, as a sentence without its
        content."""
        try:
            yield
        except (ValueError, TypeError, RecursionError):
            raise ArtifactError(
                f"{self.store.uri}/{name}: is not as this medray writes it; put it back, or "
                "choose another --output"
            ) from None

    def finish(self, record: Record, num_rows: int) -> Summary:
        """Counted from what is written, not from what was said on the way."""
        notes = self.notes()
        answered, aside = (
            sum(note.answered for note in notes),
            sum(note.set_aside for note in notes),
        )
        if answered + aside != num_rows or len(
            {(note.shard, note.number) for note in notes}
        ) != len(notes):
            raise ArtifactError(
                f"{self.store.uri}: {num_rows} rows were read, but {answered} are answered and "
                f"{aside} set aside"
            )
        summary = Summary(
            run=record,
            precision=self.agree("precision", record.precision),
            rows=num_rows,
            answered=answered,
            set_aside=aside,
            reasons=dict(Counter(line["kind"] for line in self.set_aside()).most_common()),
            made_ids=sum(note.made_ids for note in notes),
            parts=sum(note.answered > 0 for note in notes),
        )
        self.store.create(SUMMARY, summary.model_dump_json(indent=1).encode())
        return summary


def tabulate(
    task: Task, ids: Sequence[str], predictions: Sequence[Prediction], metadata: dict[str, str]
) -> pa.Table:
    """A row an answer, with what this task's predictions hold: labels and how sure they are, or
    texts and mentions."""
    columns: dict[str, Any] = {"id": list(ids)}
    fields = [("id", pa.string())]
    if task.labels:
        if not is_multi_label(task):
            columns["label"] = [row.labels[0] if row.labels else None for row in predictions]
            fields.append(("label", pa.string()))
        columns["labels"] = [list(row.labels) for row in predictions]
        columns["confidence"] = [row.confidence for row in predictions]
        columns["abstained"] = [row.abstained for row in predictions]
        columns["probabilities"] = [
            dict(zip(task.labels, row.probabilities, strict=True)) for row in predictions
        ]
        shares = pa.struct([(label, pa.float64()) for label in task.labels])
        fields += [
            ("labels", pa.list_(pa.string())),
            ("confidence", pa.float64()),
            ("abstained", pa.bool_()),
            ("probabilities", shares),
        ]
    else:
        columns["text"] = [row.text for row in predictions]
        columns["mentions"] = [[asdict(mention) for mention in row.mentions] for row in predictions]
        fields += [("text", pa.string()), ("mentions", pa.list_(_MENTION))]
    return pa.table(columns, schema=pa.schema(fields, metadata=metadata))


def encode(table: pa.Table, form: Form) -> bytes:
    if form == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        content: bytes = sink.getvalue().to_pybytes()
        return content
    if form == "jsonl":
        return "".join(
            json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()
        ).encode()
    rows = (
        {
            name: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
            for name, value in row.items()
        }
        for row in table.to_pylist()
    )
    return write_table(table.column_names, rows).encode()


def _name(shard: int, number: int) -> str:
    return f"{shard:05d}-{number:06d}"
