"""The run over a library on Ray Data: readers cut pieces, a pool of actors answers and writes them, the driver counts."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayError

import medray
from medray import storage
from medray.corpus import pieces, rows, sources
from medray.corpus.output import Form, Output, Record, Summary
from medray.corpus.sources import Columns, Shard, Source
from medray.corpus.worker import Work, Worker
from medray.data import dialect
from medray.data.progress import Progress
from medray.errors import ConfigError, DataError, MedrayError
from medray.redaction import redact
from medray.registry import Registry
from medray.runtime import Cluster
from medray.store import open_store

log = logging.getLogger(__name__)
_MOST_ACTORS_A_NODE = 8  # by default: each holds the model in memory
_FORMS: tuple[Form, ...] = ("parquet", "jsonl", "csv")


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
class Pool:
    actors: int
    threads: int
    gpus: float  # of each actor

    @classmethod
    def of(cls, cluster: Cluster, actors: int | None, threads: int | None) -> "Pool":
        """An actor a GPU; without any, actors of one thread, which answer more together than one of many, up to 8 a node."""
        if cluster.gpus:
            return cls(actors or int(cluster.gpus), threads or 1, 1.0)
        if threads is None:
            most = max(int(node.cpus) for node in cluster.nodes)
            threads = max(1, -(-most // _MOST_ACTORS_A_NODE))
        fitting = sum(int(node.cpus) // threads for node in cluster.nodes)
        if not fitting:
            raise ConfigError(
                f"--threads {threads}: no node has so many CPUs; the largest has {max(node.cpus for node in cluster.nodes):g}"
            )
        return cls(min(actors or fitting, fitting), threads, 0.0)


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
    if asked.delimiter is not None and asked.delimiter not in dialect.DELIMITERS:
        raise ConfigError(f"--delimiter {asked.delimiter!r}: is not known; allowed: , ; | tab")
    if asked.encoding is not None and not dialect.is_encoding(asked.encoding):
        raise ConfigError(f"--encoding {asked.encoding!r:.40}: is not known; {dialect.ENCODINGS}")
    where = storage.absolute(asked.output) if "://" not in asked.output else asked.output
    storage_path = asked.storage_path if "://" in asked.storage_path else str(storage.absolute(asked.storage_path))
    asked = replace(asked, output=str(where), storage_path=storage_path)
    store = open_store(asked.output)
    if not asked.output.startswith("s3://"):  # of a bucket, the check writes into it
        store.check()
    if store.names("") and not asked.resume:
        raise ConfigError(f"{store.uri}: is there already and is left alone; choose another --output, or go on with it by --resume")
    release = Registry(storage_path).resolve(asked.reference)
    input = asked.input if "://" in asked.input else os.path.abspath(os.path.expanduser(asked.input))
    source = sources.find(input, asked.encoding, asked.delimiter)
    names = [*asked.columns.text, *filter(None, [asked.columns.id])]
    columns = sources.columns(source, sources.head(source, names), asked.columns)
    record = release.record
    return Plan(asked, source, columns, record.name, record.version, record.content_id)


def predict(plan: Plan, cluster: Cluster, say: Callable[[str], None]) -> Summary:
    asked, source = plan.asked, plan.source
    pool = Pool.of(cluster, asked.actors, asked.threads)
    with _plainly():
        say(
            f"reading {len(source.shards)} {'parts' if len(source.shards) > 1 else 'part'} of {redact(source.uri)} once, for counts and ids"
        )
        scans = _scans(source, plan.columns, asked.most_characters)
        total = sum(len(scan.ids) for scan in scans)
        if not total:
            raise DataError(f"{source.uri}: has no rows")
        if (num_bad := sum(scan.num_bad for scan in scans)) > asked.max_bad * total:
            example = next(scan.example for scan in scans if scan.example)
            raise DataError(
                f"{num_bad} of {total} rows cannot be answered, more than --max-bad {asked.max_bad:g}, so none was; the first is {example}"
            )
        repeated = pieces.repeats([scan.ids for scan in scans])
        del scans
        output = Output(open_store(asked.output), asked.form)
        record = output.begin(plan.record(pieces.num_rows(total, pool.actors)), resume=asked.resume)
        if summary := output.summary():
            return summary
        notes = output.notes()
        done: list[list[int]] = [[] for _ in source.shards]
        for note in notes:
            done[note.shard].append(note.number)
        aside = sum(note.set_aside for note in notes)
        progress = Progress(total, say, sum(note.answered + note.set_aside for note in notes))
        if notes:
            say(f"{progress.done} of {total} rows are there already")
        work = Work(record, asked.storage_path, asked.output, pool.threads)
        tasks = [ReadTask(shard, tuple(again), tuple(there)) for shard, again, there in zip(source.shards, repeated, done, strict=True)]
        say(f"{plan.name}@{plan.version} answers {total} rows with {pool.actors} {'actors' if pool.actors > 1 else 'actor'}")
        for answered, bad in _answers(tasks, plan.columns, work, pool):
            progress.add(answered + bad)
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


def _scans(source: Source, columns: Columns, most_characters: int) -> list[pieces.Scan]:
    scan = ray.remote(num_cpus=1)(pieces.scan)
    return list(ray.get([scan.remote(shard, columns, most_characters) for shard in source.shards]))


def _answers(tasks: list[ReadTask], columns: Columns, work: Work, pool: Pool) -> Iterator[tuple[int, int]]:
    """Rows answered and set aside of one piece after another, as they are written."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # medray shows the progress itself
    data = ray.data.from_items([{"task": task.dumps()} for task in tasks], override_num_blocks=len(tasks))
    data.context.enable_progress_bars = False
    data.context.print_on_execution_start = False
    data.context.raise_original_map_exception = True  # Ray's wrapper loses what it wraps on its way here, but for the text
    data.context.target_max_block_size = 1  # a block a piece: else the pieces of a file would wait for each other, for one actor
    data = data.map_batches(
        read_pieces,
        fn_kwargs={"columns": columns, "most_characters": work.record.most_characters, "size": work.record.piece_rows},
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=0,  # little beside the model: with a CPU of its own it would wait for ever on a node that the actors fill
        compute=ray.data.TaskPoolStrategy(min(len(tasks), pool.actors)),
    )
    data = data.map_batches(
        Worker,
        fn_constructor_args=(work,),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=pool.threads,
        num_gpus=pool.gpus or None,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=pool.actors, initial_size=pool.actors),
    )
    for row in data.iter_rows():
        yield row["answered"], row["set_aside"]


def read_pieces(batch: pa.Table, columns: Columns, most_characters: int, size: int) -> Iterator[pa.Table]:
    for text in batch["task"].to_pylist():
        task = ReadTask.loads(text)
        done = set(task.done)
        for piece in pieces.cut(rows.read(task.shard, columns, most_characters), task.shard.number, size, task.repeated):
            if piece.number not in done:
                yield piece.table()


@contextmanager
def _plainly() -> Iterator[None]:
    """An error of medray's own that crossed Ray's processes, as it was raised."""
    try:
        yield
    except (MedrayError, RayError) as err:
        cause: Any = err
        while cause := getattr(cause, "cause", None) or getattr(cause, "__cause__", None):
            if isinstance(cause, MedrayError) and not isinstance(cause, RayError):
                raise type(cause)(str(cause)) from None
        raise


def _too_many(aside: int, total: int, allowed: float, output: Output) -> str:
    example = next(output.set_aside())
    return (
        f"{aside} of {total} rows were set aside, more than --max-bad {allowed:g}; one is {example['where']}: {example['reason']};"
        f" all are in {output.store.uri}/_set_aside; --resume with a larger --max-bad goes on"
    )
