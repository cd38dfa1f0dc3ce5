"""Prediction of a small dataset in this process. Starting Ray would take longer than predicting so
few rows."""

import logging
import os
from collections.abc import Iterator

import torch

from medray.batch import driver, pieces
from medray.batch.driver import BatchPlan, ReadTask, RowCount
from medray.batch.output import Summary
from medray.batch.predictor import Predictor, Work
from medray.data.meter import Heartbeat
from medray.errors import ConfigError
from medray.models.device import reserved_device

MOST_ROWS = 2000
# Small pieces: the first rows are ready after seconds, even with 135 million parameters on 2 cores.
_PIECE_ROWS = 16


def count(plan: BatchPlan) -> RowCount | None:
    """Count the rows of a small input. Return None if it has more than `MOST_ROWS`."""
    scans, left = [], MOST_ROWS
    for shard in plan.source.shards:
        scans.append(
            pieces.scan(shard, plan.columns, plan.request.most_characters, most_rows=left + 1)
        )
        left -= len(scans[-1].ids)
        if left < 0:
            return None
    return RowCount.of(plan.source, scans, plan.request.max_bad)


def predict(plan: BatchPlan, row_count: RowCount, heart: Heartbeat) -> Summary:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if (threads := plan.request.threads or min(cpus, torch.get_num_threads())) > cpus:
        raise ConfigError(f"--cpus {threads}: this machine has {cpus} CPUs; give at most that many")
    logging.getLogger("medray.serving.opening").setLevel(logging.WARNING)

    def predict_pieces(tasks: list[ReadTask], work: Work) -> Iterator[tuple[int, int]]:
        predictor = Predictor(work, reserved_device(None), is_timed=False)
        for task in tasks:
            for piece in task.pieces(plan.columns, work.record):
                note = predictor.answer(piece)
                yield note.answered, note.set_aside

    by = f"in this process (as for up to {MOST_ROWS:,} rows; --actors N uses Ray)"
    return driver.predict(
        plan, row_count, heart, predict_pieces, piece_rows=_PIECE_ROWS, threads=threads, by=by
    )
