"""The predictor of a batch, as an actor of the pool or in this process. It loads the release,
predicts pieces and writes them."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import torch

from medray.batch.output import BatchOutput, Note, Record, tabulate
from medray.batch.pieces import Piece
from medray.batch.rows import InputRow
from medray.config.schema import validate
from medray.errors import ConfigError, DataError, MedrayError
from medray.registry.loading import LoadedRelease
from medray.registry.registry import Registry
from medray.registry.release import Release
from medray.serving.opening import open_model
from medray.serving.schemas import AppOptions
from medray.storage import checkpoint
from medray.storage.store import open_store
from medray.tasks.base.route import routes_of
from medray.types import Example, Prediction

UNANSWERABLE = "unanswerable"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """The settings that all predictors of a run share."""

    record: Record
    storage_path: str
    output: str
    threads: int

    def open_output(self) -> BatchOutput:
        return BatchOutput(open_store(self.output), self.record.form)


class Predictor:
    """Loads the release as the service does, in the faster precision on this machine.

    The measurement takes longer than a few rows. Without `is_timed`, `auto` is the release's
    training precision."""

    def __init__(self, work: Work, device: str, *, is_timed: bool = True) -> None:
        logging.getLogger("transformers").setLevel(logging.ERROR)
        torch.set_num_threads(work.threads)
        self.work, self.output, self.is_timed = work, work.open_output(), is_timed
        # One thread computes for the actor's whole life: each computing thread keeps its own OpenMP
        # workers.
        self.compute = ThreadPoolExecutor(
            1, "compute", initializer=torch.set_num_threads, initargs=(work.threads,)
        )
        self.failure: MedrayError | None = None
        try:
            self._prepare(device)
        # If an actor dies before it is ready, Ray returns its error as the text of a traceback.
        except MedrayError as err:
            self.failure = err

    def __call__(self, batch: pa.Table) -> pa.Table:
        notes = [self.answer(Piece.of(values)) for values in batch.to_pylist()]
        return pa.Table.from_pylist(
            [{"answered": note.answered, "set_aside": note.set_aside} for note in notes]
        )

    def _prepare(self, device: str) -> None:
        record = self.work.record
        release = Registry(self.work.storage_path).resolve(f"{record.release}@{record.version}")
        self.release = self._load(release, record.precision, device)
        # Predictors measure which precision is faster, and measurements differ. All parts have the
        # precision of the first predictor.
        precision = self.output.agree("precision", self.release.precision)
        if precision != self.release.precision:
            try:
                self.release = self._load(release, precision, device)
            except ConfigError as err:
                raise DataError(
                    f"{self.work.output}: its first part is in {precision}, which this machine "
                    f"cannot compute: {err}; continue on another machine,"
                    " or start another output with --precision"
                ) from err
        self.metadata = {
            "medray": record.medray,
            "release": record.release,
            "version": str(record.version),
            "content_id": record.content_id,
            "precision": precision,
        }

    def answer(self, piece: Piece) -> Note:
        if self.failure:
            raise self.failure
        good = [row for row in piece.rows if not row.fault]
        aside = [row for row in piece.rows if row.fault]
        result = self.compute.submit(predict_rows, self.release.predict, good).result()
        aside += result.unanswerable
        table = tabulate(
            self.release.task, [row.id for row in result.rows], result.predictions, self.metadata
        )
        return self.output.write(
            piece.shard, piece.number, table, aside, sum(row.is_made for row in piece.rows)
        )

    def _load(self, release: Release, precision: str, device: str) -> LoadedRelease:
        raw = {
            "releases": [release.reference],
            "precision": precision,
            "token_budget": self.work.record.token_budget,
        }
        options = validate(AppOptions, raw, where="medray predict")
        if self.is_timed and routes_of(str(checkpoint.read(release.folder()).task.options["name"])):
            return open_model(release, options, self.compute, device=device).release
        # A task without a route predicts in its training precision.
        return release.load(
            device=device,
            precision=None if options.precision == "auto" else options.precision,
            merge=True,
        )


@dataclass(frozen=True)
class RowPredictions:
    rows: list[InputRow]
    predictions: list[Prediction]  # one per row
    unanswerable: list[InputRow]


def predict_rows(
    predict: Callable[[Sequence[Example]], list[Prediction]], rows: Sequence[InputRow]
) -> RowPredictions:
    """Predict all rows together. After a DataError predict halves, so that only the faulty row is
    set aside."""
    if not rows:
        return RowPredictions([], [], [])
    try:
        predictions = predict([Example(row.id, row.text, where=row.where) for row in rows])
    except DataError as err:
        if len(rows) == 1:
            reason = str(err)
            return RowPredictions(
                [],
                [],
                [InputRow(rows[0].id, "", rows[0].where, rows[0].is_made, UNANSWERABLE, reason)],
            )
        middle = len(rows) // 2
        first, second = predict_rows(predict, rows[:middle]), predict_rows(predict, rows[middle:])
        return RowPredictions(
            first.rows + second.rows,
            first.predictions + second.predictions,
            first.unanswerable + second.unanswerable,
        )
    return RowPredictions(list(rows), predictions, [])
