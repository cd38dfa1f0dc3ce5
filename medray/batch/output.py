"""The output of a prediction: parts with predictions, parts with rows set aside, a note per
finished piece, and at last a summary.

Each file is created once and complete, under a name that follows from its piece. So a piece that
runs twice, by a retry or a resume, exists once. A piece without a note counts as unfinished."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator

from medray.batch.rows import InputRow
from medray.config.schema import Section
from medray.errors import ArtifactError, ConfigError
from medray.errors.redaction import redact
from medray.evaluation.calibration import is_multi_label
from medray.storage.store import Store
from medray.tasks.base.protocol import QuestionTask, Task, has_confident_texts
from medray.text.csv_text import write_table
from medray.types import Prediction, QuestionAnswer

OutputFormat = Literal["parquet", "jsonl", "csv"]
RUN, SUMMARY = "_run.json", "_summary.json"
_NOTES, _ASIDE = "_done", "_set_aside"
_MENTION = pa.struct(
    [("start", pa.int64()), ("end", pa.int64()), ("text", pa.string()), ("kind", pa.string())]
)
_ANSWER = pa.struct(
    [
        ("name", pa.string()),
        ("value", pa.string()),
        ("confidence", pa.float64()),
        ("abstained", pa.bool_()),
        (
            "probabilities",
            pa.list_(pa.struct([("value", pa.string()), ("probability", pa.float64())])),
        ),
    ]
)


class Record(Section):
    """The settings of a run. A resumed run must have the same."""

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
    form: OutputFormat
    piece_rows: int
    encoding: str = "utf-8"
    delimiter: str | None = None


class Summary(Section):
    """The last file of an output. An output without it is incomplete."""

    run: Record
    precision: str  # of the computation
    rows: int
    answered: int
    set_aside: int
    reasons: dict[str, int]  # number of rows set aside by kind of fault
    made_ids: int  # rows whose id comes from file and position
    parts: int


@dataclass(frozen=True)
class Note:
    """The counts of a finished piece. Its name has them all, so a listing is enough to read
    them."""

    shard: int
    number: int
    answered: int
    set_aside: int
    made_ids: int

    @property
    def name(self) -> str:
        name = _name(self.shard, self.number)
        return f"{_NOTES}/{name}.{self.answered}.{self.set_aside}.{self.made_ids}"

    @classmethod
    def of(cls, name: str) -> "Note":
        piece, *counts = name.split(".")
        return cls(*map(int, [*piece.split("-"), *counts]))


class BatchOutput:
    def __init__(self, store: Store, form: OutputFormat) -> None:
        self.store, self.form = store, form

    def begin(self, record: Record, *, resume: bool) -> Record:
        """Claim the output, or return the record of the run to resume. The size of pieces stays
        that of the first run."""
        if self.store.names("") and RUN not in self.store.names(""):
            raise ConfigError(
                f"{self.store.uri}: exists already and is not an output of medray; choose another "
                "--output"
            )
        if self.store.create(RUN, record.model_dump_json(indent=1).encode()):
            return record
        if not resume:
            raise ConfigError(
                f"{self.store.uri}: exists already; choose another --output, or continue it by "
                "--resume"
            )
        with self._parsing(RUN):
            first = Record.model_validate_json(self.store.read(RUN))
        settings = record.model_dump() | {"piece_rows": first.piece_rows}
        for name, value in first.model_dump().items():
            if value != settings[name]:
                raise ConfigError(
                    f"{self.store.uri}: was started with {name} {value!r} and cannot continue with "
                    f"{settings[name]!r}; choose another --output"
                )
        return first

    def summary(self) -> Summary | None:
        if SUMMARY not in self.store.names(""):
            return None
        with self._parsing(SUMMARY):
            return Summary.model_validate_json(self.store.read(SUMMARY))

    def agree(self, name: str, value: str) -> str:
        """Return the value of the first predictor, in this run or an earlier one."""
        return (
            value
            if self.store.create(f"_{name}", value.encode())
            else self.store.read(f"_{name}").decode()
        )

    def notes(self) -> list[Note]:
        notes = []
        for name in self.store.names(_NOTES):
            with self._parsing(f"{_NOTES}/{name}"):
                notes.append(Note.of(name))
        return notes

    def write(
        self, shard: int, number: int, table: pa.Table, aside: Sequence[InputRow], made_ids: int
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
            with self._parsing(f"{_ASIDE}/{name}"):
                # Split bytes: lines of text end in more places.
                lines = self.store.read(f"{_ASIDE}/{name}").splitlines()
                items = [json.loads(line) for line in lines]
            yield from items

    @contextmanager
    def _parsing(self, name: str) -> Iterator[None]:
        """Turn errors of parsing a damaged file into one sentence without its content."""
        try:
            yield
        except (ValueError, TypeError, RecursionError):
            raise ArtifactError(
                f"{self.store.uri}/{name}: is not a file of this medray; restore it, or choose "
                "another --output"
            ) from None

    def finish(self, record: Record, num_rows: int) -> Summary:
        """Write the summary. It counts the notes on disk, not the progress reports."""
        notes = self.notes()
        num_answers, aside = (
            sum(note.answered for note in notes),
            sum(note.set_aside for note in notes),
        )
        if num_answers + aside != num_rows or len(
            {(note.shard, note.number) for note in notes}
        ) != len(notes):
            raise ArtifactError(
                f"{self.store.uri}: {num_rows} rows were read, but {num_answers} have predictions "
                "and "
                f"{aside} are set aside; run it again with another --output"
            )
        summary = Summary(
            run=record,
            precision=self.agree("precision", record.precision),
            rows=num_rows,
            answered=num_answers,
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
    """Return a table with one row per prediction: labels with confidence and probabilities,
    answers to questions, or text and mentions."""
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
    elif isinstance(task, QuestionTask):
        columns["answers"] = [[_answer(answer) for answer in row.answers] for row in predictions]
        fields.append(("answers", pa.list_(_ANSWER)))
    else:
        columns["text"] = [row.text for row in predictions]
        columns["mentions"] = [[asdict(mention) for mention in row.mentions] for row in predictions]
        fields += [("text", pa.string()), ("mentions", pa.list_(_MENTION))]
        if has_confident_texts(task):
            columns["confidence"] = [row.confidence for row in predictions]
            columns["abstained"] = [row.abstained for row in predictions]
            fields += [("confidence", pa.float64()), ("abstained", pa.bool_())]
    return pa.table(columns, schema=pa.schema(fields, metadata=metadata))


def _answer(answer: QuestionAnswer) -> dict[str, Any]:
    shares = zip(answer.values, answer.probabilities, strict=True)
    return {
        "name": answer.name,
        "value": answer.value,
        "confidence": answer.confidence,
        "abstained": answer.abstained,
        "probabilities": [{"value": value, "probability": share} for value, share in shares],
    }


def encode(table: pa.Table, form: OutputFormat) -> bytes:
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
