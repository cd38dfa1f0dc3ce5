"""The run over a library: what is asked and read, and how answers become a whole output. `single`
and `pool` give the answers."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self, get_args

import medray
from medray.batch import pieces, rows, sources
from medray.batch.output import Form, Output, Record, Summary
from medray.batch.pieces import Piece, Scan
from medray.batch.shards import Columns, Shard
from medray.batch.sources import Source
from medray.batch.worker import Work
from medray.config.study import Precision
from medray.data.meter import Heartbeat, Meter
from medray.errors import ConfigError, DataError, suggest
from medray.errors.redaction import redact
from medray.registry.registry import Registry
from medray.storage import files
from medray.storage.store import is_object_store, open_store
from medray.text import dialect

_FORMS: tuple[Form, ...] = ("parquet", "jsonl", "csv")
Answers = Callable[
    ["list[ReadTask]", Work], Iterator[tuple[int, int]]
]  # rows answered and set aside of each piece, as it is written


@dataclass(frozen=True)
class Asked:
    """What the user said."""

    reference: str
    input: str
    output: str
    storage_path: str = "runs"
    columns: Columns = field(default_factory=Columns)
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
    def form(self) -> Form:
        """By the output's name; a folder without an ending gets parquet."""
        ending = Path(self.output).suffix.removeprefix(".")
        return next((form for form in _FORMS if form == ending), "parquet")


@dataclass(frozen=True)
class Plan:
    """What is read, as it was found before Ray was asked for anything."""

    asked: Asked
    source: Source
    columns: Columns
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
            most_characters=self.asked.most_characters,
            token_budget=self.asked.token_budget,
            precision=self.asked.precision,
            form=self.asked.form,
            encoding=self.source.encoding,
            delimiter=self.asked.delimiter,
            piece_rows=piece_rows,
        )


def prepare(asked: Asked) -> Plan:
    """Everything that can be wrong with what was asked, before a cluster is started."""
    if not 0 <= asked.max_bad <= 1:
        raise ConfigError(f"--max-bad {asked.max_bad}: a share of the rows; allowed: 0 to 1")
    if asked.precision not in (known := ("auto", *get_args(Precision))):
        raise ConfigError(
            f"--precision {asked.precision!r:.40}: is not known; {suggest(asked.precision, known)}"
        )
    if asked.delimiter is not None and asked.delimiter not in dialect.DELIMITERS:
        raise ConfigError(f"--delimiter {asked.delimiter!r}: is not known; allowed: , ; | tab")
    if asked.encoding is not None and not dialect.is_encoding(asked.encoding):
        raise ConfigError(f"--encoding {asked.encoding!r:.40}: is not known; {dialect.ENCODINGS}")
    where = files.absolute(asked.output) if "://" not in asked.output else asked.output
    storage_path = (
        asked.storage_path
        if "://" in asked.storage_path
        else str(files.absolute(asked.storage_path))
    )
    asked = replace(asked, output=str(where), storage_path=storage_path)
    store = open_store(asked.output)
    if not is_object_store(asked.output):  # of a bucket, the check writes into it
        store.check()
    if store.names("") and not asked.resume:
        raise ConfigError(
            f"{store.uri}: is there already and is left alone; choose another --output, or go on "
            "with it by --resume"
        )
    release = Registry(storage_path).resolve(asked.reference)
    input = (
        asked.input if "://" in asked.input else os.path.abspath(os.path.expanduser(asked.input))
    )
    source = sources.find(input, asked.encoding, asked.delimiter)
    names = [*asked.columns.text, *filter(None, [asked.columns.id])]
    columns = sources.columns(source, sources.head(source, names), asked.columns)
    record = release.record
    return Plan(asked, source, columns, record.name, record.version, record.content_id)


def reading(source: Source) -> str:
    parts = f"{len(source.shards)} {'parts' if len(source.shards) > 1 else 'part'}"
    return f"reading {parts} of {redact(source.uri)} once, for counts and ids"


@dataclass(frozen=True)
class Counted:
    """What is known of the rows once all were read."""

    total: int
    repeated: list[list[int]]  # of each shard, the places of ids that stand before

    @classmethod
    def of(cls, source: Source, scans: Sequence[Scan], max_bad: float) -> Self:
        total = sum(len(scan.ids) for scan in scans)
        if not total:
            raise DataError(f"{source.uri}: has no rows")
        if (num_bad := sum(scan.num_bad for scan in scans)) > max_bad * total:
            example = next(scan.example for scan in scans if scan.example)
            raise DataError(
                f"{num_bad} of {total} rows cannot be answered, more than --max-bad {max_bad:g}, "
                f"so none was; the first is {example}"
            )
        return cls(total, pieces.repeats([scan.ids for scan in scans]))


def predict(
    plan: Plan,
    counted: Counted,
    heart: Heartbeat,
    answers: Answers,
    *,
    piece_rows: int,
    threads: int,
    by: str,
) -> Summary:
    """Answer what is not answered yet, and count what is written. `by`: who answers, for the
    user."""
    asked, total = plan.asked, counted.total
    output = Output(open_store(asked.output), asked.form)
    record = output.begin(plan.record(piece_rows), resume=asked.resume)
    if summary := output.summary():
        return summary
    notes = output.notes()
    done: list[list[int]] = [[] for _ in plan.source.shards]
    for note in notes:
        if note.shard >= len(done):
            raise ConfigError(
                f"{asked.output}: holds answers of part {note.shard}, which the input does not "
                "have; choose another --output"
            )
        done[note.shard].append(note.number)
    aside = sum(note.set_aside for note in notes)
    progress = Meter(total, heart.say, sum(note.answered + note.set_aside for note in notes))
    if notes:
        heart.say(f"{progress.count} of {total} rows are there already")
    work = Work(record, asked.storage_path, asked.output, threads)
    tasks = [
        ReadTask(shard, tuple(again), tuple(there))
        for shard, again, there in zip(plan.source.shards, counted.repeated, done, strict=True)
    ]
    heart.say(f"{plan.name}@{plan.version} answers {total} rows {by}")
    heart.stage(f"loading {plan.name}@{plan.version}")
    is_first = True
    for answered, bad in answers(tasks, work):
        progress.add(answered + bad)
        if is_first:
            heart.stage("answering")
            heart.say(
                f"first rows after {time.monotonic() - heart.start:.0f} s: {progress.count} of "
                f"{total}"
            )
        is_first = False
        aside += bad
        if aside > asked.max_bad * total:
            raise DataError(_too_many(aside, total, asked.max_bad, output))
    return output.finish(record, total)


@dataclass(frozen=True)
class ReadTask:
    shard: Shard
    repeated: tuple[int, ...]
    done: tuple[int, ...]

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> "ReadTask":
        held = json.loads(text)
        shard = Shard(**{**held["shard"], "paths": tuple(held["shard"]["paths"])})
        return cls(shard, tuple(held["repeated"]), tuple(held["done"]))

    def pieces(self, columns: Columns, record: Record) -> Iterator[Piece]:
        """The shard's pieces that are not done."""
        done = set(self.done)
        read = rows.read(self.shard, columns, record.most_characters)
        for piece in pieces.cut(read, self.shard.number, record.piece_rows, self.repeated):
            if piece.number not in done:
                yield piece


def _too_many(aside: int, total: int, most_bad: float, output: Output) -> str:
    example = next(output.set_aside())
    return (
        f"{aside} of {total} rows were set aside, more than --max-bad {most_bad:g}; one is "
        f"{example['where']}: {example['reason']};"
        f" all are in {output.store.uri}/_set_aside; --resume with a larger --max-bad goes on"
    )
