"""Prediction of a whole dataset: the request, the plan, and the output. `single` and `pool` compute
the predictions."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self, get_args

import medray
from medray.batch import inputs, pieces, rows
from medray.batch.inputs import Source
from medray.batch.output import BatchOutput, OutputFormat, Record, Summary
from medray.batch.pieces import Piece, Scan
from medray.batch.predictor import Work
from medray.batch.shards import Shard, TextColumns
from medray.config.trial import Precision
from medray.data.meter import Heartbeat, Meter
from medray.errors import ConfigError, DataError, suggest
from medray.errors.redaction import redact
from medray.registry.registry import Registry
from medray.storage import files
from medray.storage.store import is_object_store, open_store
from medray.text import dialect

_FORMATS: tuple[OutputFormat, ...] = ("parquet", "jsonl", "csv")
# Yields, per finished piece, the numbers of rows answered and set aside.
PredictPieces = Callable[["list[ReadTask]", Work], Iterator[tuple[int, int]]]


@dataclass(frozen=True)
class BatchRequest:
    """The user's settings of a prediction."""

    reference: str
    input: str
    output: str
    storage_path: str = "runs"
    columns: TextColumns = field(default_factory=TextColumns)
    resume: bool = False
    max_bad: float = 0.1
    most_characters: int = 1_000_000
    token_budget: int = 4096
    precision: str = "auto"
    actors: int | None = None
    threads: int | None = None
    encoding: str | None = None
    delimiter: str | None = None

    @property
    def form(self) -> OutputFormat:
        """The format of the output's suffix; parquet for a folder without one."""
        suffix = Path(self.output).suffix.removeprefix(".")
        return next((form for form in _FORMATS if form == suffix), "parquet")


@dataclass(frozen=True)
class BatchPlan:
    """The input and the release, resolved before Ray starts."""

    request: BatchRequest
    source: Source
    columns: TextColumns
    name: str
    version: int
    content_id: str

    def record(self, piece_rows: int) -> Record:
        return Record(
            medray=medray.__version__,
            release=self.name,
            version=self.version,
            content_id=self.content_id,
            input=self.source.uri,
            fingerprint=self.source.fingerprint,
            text_columns=self.columns.text,
            id_column=self.columns.id,
            most_characters=self.request.most_characters,
            token_budget=self.request.token_budget,
            precision=self.request.precision,
            form=self.request.form,
            encoding=self.source.encoding,
            delimiter=self.request.delimiter,
            piece_rows=piece_rows,
        )


def prepare(request: BatchRequest) -> BatchPlan:
    """Check a request and resolve its input and release, before a cluster starts."""
    if not 0 <= request.max_bad <= 1:
        raise ConfigError(
            f"--max-bad {request.max_bad}: is not a share of the rows; allowed: 0 to 1"
        )
    if request.precision not in (choices := ("auto", *get_args(Precision))):
        raise ConfigError(
            f"--precision {request.precision!r:.40}: is not known; "
            f"{suggest(request.precision, choices)}"
        )
    if request.delimiter is not None and request.delimiter not in dialect.DELIMITERS:
        raise ConfigError(f"--delimiter {request.delimiter!r}: is not known; allowed: , ; | tab")
    if request.encoding is not None and not dialect.is_encoding(request.encoding):
        raise ConfigError(f"--encoding {request.encoding!r:.40}: is not known; {dialect.ENCODINGS}")
    where = files.absolute(request.output) if "://" not in request.output else request.output
    storage_path = (
        request.storage_path
        if "://" in request.storage_path
        else str(files.absolute(request.storage_path))
    )
    request = replace(request, output=str(where), storage_path=storage_path)
    store = open_store(request.output)
    if not is_object_store(request.output):  # the check of a bucket writes into it
        store.check()
    if store.names("") and not request.resume:
        raise ConfigError(
            f"{store.uri}: exists already; choose another --output, or continue it by --resume"
        )
    release = Registry(storage_path).resolve(request.reference)
    input = (
        request.input
        if "://" in request.input
        else os.path.abspath(os.path.expanduser(request.input))
    )
    source = inputs.find(input, request.encoding, request.delimiter)
    names = [*request.columns.text, *filter(None, [request.columns.id])]
    columns = inputs.columns(source, inputs.head(source, names), request.columns)
    record = release.record
    return BatchPlan(request, source, columns, record.name, record.version, record.content_id)


def render_reading(source: Source) -> str:
    parts = f"{len(source.shards)} {'parts' if len(source.shards) > 1 else 'part'}"
    return f"reading {parts} of {redact(source.uri)} once, for counts and ids"


@dataclass(frozen=True)
class RowCount:
    """The rows of an input, after a first pass over them."""

    total: int
    repeats: list[list[int]]  # per shard, the positions of ids from earlier rows

    @classmethod
    def of(cls, source: Source, scans: Sequence[Scan], max_bad: float) -> Self:
        total = sum(len(scan.ids) for scan in scans)
        if not total:
            raise DataError(f"{source.uri}: has no rows")
        if (num_bad := sum(scan.num_bad for scan in scans)) > max_bad * total:
            example = next(scan.example for scan in scans if scan.example)
            raise DataError(
                f"{source.uri}: {num_bad} of {total} rows cannot be predicted, more than --max-bad "
                f"{max_bad:g}, so the run did not start; the first is {example}"
            )
        return cls(total, pieces.repeats([scan.ids for scan in scans]))


def predict(
    plan: BatchPlan,
    row_count: RowCount,
    heart: Heartbeat,
    predict_pieces: PredictPieces,
    *,
    piece_rows: int,
    threads: int,
    by: str,
) -> Summary:
    """Predict the rows without a prediction, and write the summary. `by` names the processes in a
    log line."""
    request, total = plan.request, row_count.total
    output = BatchOutput(open_store(request.output), request.form)
    record = output.begin(plan.record(piece_rows), resume=request.resume)
    if summary := output.summary():
        return summary
    notes = output.notes()
    numbers: list[list[int]] = [[] for _ in plan.source.shards]
    for note in notes:
        if note.shard >= len(numbers):
            raise ConfigError(
                f"{request.output}: has predictions of part {note.shard}, which the input does not "
                "have; choose another --output"
            )
        numbers[note.shard].append(note.number)
    aside = sum(note.set_aside for note in notes)
    progress = Meter(total, heart.say, sum(note.answered + note.set_aside for note in notes))
    if notes:
        heart.say(f"{progress.count} of {total} rows are predicted already")
    work = Work(record, request.storage_path, request.output, threads)
    tasks = [
        ReadTask(shard, tuple(repeats), tuple(skip))
        for shard, repeats, skip in zip(plan.source.shards, row_count.repeats, numbers, strict=True)
    ]
    heart.say(f"{plan.name}@{plan.version} predicts {total} rows {by}")
    heart.stage(f"loading {plan.name}@{plan.version}")
    is_first = True
    for num_answers, num_bad in predict_pieces(tasks, work):
        progress.add(num_answers + num_bad)
        if is_first:
            heart.stage("predicting")
            heart.say(
                f"first rows after {time.monotonic() - heart.start:.0f} s: {progress.count} of "
                f"{total}"
            )
        is_first = False
        aside += num_bad
        if aside > request.max_bad * total:
            raise DataError(_too_many(aside, total, request.max_bad, output))
    return output.finish(record, total)


@dataclass(frozen=True)
class ReadTask:
    shard: Shard
    repeats: tuple[int, ...]  # positions of rows whose id repeats
    skip: tuple[int, ...]  # numbers of pieces with predictions

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> "ReadTask":
        fields = json.loads(text)
        shard = Shard(**{**fields["shard"], "paths": tuple(fields["shard"]["paths"])})
        return cls(shard, tuple(fields["repeats"]), tuple(fields["skip"]))

    def pieces(self, columns: TextColumns, record: Record) -> Iterator[Piece]:
        """Yield the shard's pieces without predictions."""
        skip = set(self.skip)
        shard_rows = rows.read(self.shard, columns, record.most_characters)
        for piece in pieces.cut(shard_rows, self.shard.number, record.piece_rows, self.repeats):
            if piece.number not in skip:
                yield piece


def _too_many(aside: int, total: int, most_bad: float, output: BatchOutput) -> str:
    example = next(output.set_aside())
    return (
        f"{aside} of {total} rows were set aside, more than --max-bad {most_bad:g}; one is "
        f"{example['where']}: {example['reason']};"
        f" all are in {output.store.uri}/_set_aside; continue by --resume with a larger --max-bad"
    )
