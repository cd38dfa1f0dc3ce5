"""What answers pieces, an actor of the pool or this process alone: it holds the release, answers a piece, writes it."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import torch

from medray.batch.output import Note, Output, Record, tabulate
from medray.batch.pieces import Piece
from medray.batch.rows import Row
from medray.config.schema import validate
from medray.errors import ConfigError, DataError, MedrayError
from medray.records import CalibrationRecord
from medray.registry.answers import calibrated
from medray.registry.loading import merged
from medray.registry.registry import Registry
from medray.registry.release import Release
from medray.serving.head import Head, open_head
from medray.serving.schemas import AppOptions
from medray.storage import checkpoint
from medray.storage.store import open_store
from medray.tasks.base.protocol import Task
from medray.tasks.base.route import routes_of
from medray.types import Engine, Example, Prediction

UNANSWERABLE = "unanswerable"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What every worker is told."""

    record: Record
    storage_path: str
    output: str
    threads: int

    def open_output(self) -> Output:
        return Output(open_store(self.output), self.record.form)


@dataclass(frozen=True)
class Opened:
    task: Task
    engine: Engine
    calibration: CalibrationRecord
    precision: str

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        return calibrated(self.task, self.calibration, self.task.predict(self.engine, examples))


class Worker:
    """The release is opened as for HTTP, in the arithmetic that is faster here. Timing that takes longer than a few rows:
    without it (`is_timed`) `auto` is the arithmetic that the release was trained in."""

    def __init__(self, work: Work, device: str, *, is_timed: bool = True) -> None:
        logging.getLogger("transformers").setLevel(logging.ERROR)
        torch.set_num_threads(work.threads)
        self.work, self.output, self.is_timed = work, work.open_output(), is_timed
        # One thread computes for the actor's whole life: each that ever did keeps OpenMP workers of its own.
        self.compute = ThreadPoolExecutor(1, "compute", initializer=torch.set_num_threads, initargs=(work.threads,))
        self.failure: MedrayError | None = None
        try:
            self._prepare(device)
        except MedrayError as err:  # of an actor that dies before it is there, Ray tells a traceback as text
            self.failure = err

    def __call__(self, batch: pa.Table) -> pa.Table:
        notes = [self.answer(Piece.of(held)) for held in batch.to_pylist()]
        return pa.Table.from_pylist([{"answered": note.answered, "set_aside": note.set_aside} for note in notes])

    def _prepare(self, device: str) -> None:
        record = self.work.record
        release = Registry(self.work.storage_path).resolve(f"{record.release}@{record.version}")
        self.opened = self._open(release, record.precision, device)
        # What is faster is measured, and measures differ: all parts are of the arithmetic that the first worker chose.
        used = self.output.agree("precision", self.opened.precision)
        if used != self.opened.precision:
            try:
                self.opened = self._open(release, used, device)
            except ConfigError as err:
                raise DataError(
                    f"{self.work.output}: its first part is in {used}, which cannot be had here: {err}; go on where it can,"
                    " or begin another output with --precision"
                ) from err
        self.metadata = {
            "medray": record.medray,
            "release": record.release,
            "version": str(record.version),
            "content_id": record.content_id,
            "precision": used,
        }

    def answer(self, piece: Piece) -> Note:
        if self.failure:
            raise self.failure
        good = [row for row in piece.rows if not row.fault]
        aside = [row for row in piece.rows if row.fault]
        answers = self.compute.submit(answered, self.opened, good).result()
        aside += answers.unanswerable
        table = tabulate(self.opened.task, [row.id for row in answers.rows], answers.predictions, self.metadata)
        return self.output.write(piece.shard, piece.number, table, aside, sum(row.is_made for row in piece.rows))

    def _open(self, release: Release, precision: str, device: str) -> Opened:
        raw = {"releases": [release.reference], "precision": precision, "token_budget": self.work.record.token_budget}
        options = validate(AppOptions, raw, where="medray predict")
        if self.is_timed and routes_of(str(checkpoint.read(release.folder()).task.options["name"])):
            head = open_head(release, options, self.compute, device=device)
            assert isinstance(head, Head)
            return Opened(head.task, head.batcher.engine, head.calibration, head.precision)
        # What has no route yet answers in the arithmetic that it was trained in, too.
        loaded = release.load(device=device, precision=None if options.precision == "auto" else options.precision)
        engine = merged(loaded) if release.serves_merged() else loaded.engine
        return Opened(loaded.task, engine, loaded.calibration, precision if precision != "auto" else loaded.manifest.precision.used)


@dataclass(frozen=True)
class Answered:
    rows: list[Row]
    predictions: list[Prediction]
    unanswerable: list[Row]


def answered(opened: Opened, rows: Sequence[Row]) -> Answered:
    """Together; where that fails by a row's own fault, in halves, so that only this row is set aside."""
    if not rows:
        return Answered([], [], [])
    try:
        found = opened.predict([Example(row.id, row.text, where=row.where) for row in rows])
    except DataError as err:
        if len(rows) == 1:
            reason = str(err)
            return Answered([], [], [Row(rows[0].id, "", rows[0].where, rows[0].is_made, UNANSWERABLE, reason)])
        middle = len(rows) // 2
        first, second = answered(opened, rows[:middle]), answered(opened, rows[middle:])
        return Answered(first.rows + second.rows, first.predictions + second.predictions, first.unanswerable + second.unanswerable)
    return Answered(list(rows), found, [])
