"""A small library in this process: without Ray, which takes longer to start than so few rows to
answer."""

import logging
import os
from collections.abc import Iterator

import torch

from medray.batch import pieces, run
from medray.batch.output import Summary
from medray.batch.run import Counted, Plan, ReadTask
from medray.batch.worker import Work, Worker
from medray.data.meter import Heartbeat
from medray.errors import ConfigError

MOST_ROWS = 2000
# the first rows are there after seconds, of a model of 135 million parameters on two cores too
_PIECE_ROWS = 16


def count(plan: Plan) -> Counted | None:
    """The rows of an input that is small; None where it has more than `MOST_ROWS`."""
    found, left = [], MOST_ROWS
    for shard in plan.source.shards:
        found.append(
            pieces.scan(shard, plan.columns, plan.asked.most_characters, most_rows=left + 1)
        )
        left -= len(found[-1].ids)
        if left < 0:
            return None
    return Counted.of(plan.source, found, plan.asked.max_bad)


def predict(plan: Plan, counted: Counted, heart: Heartbeat) -> Summary:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if (threads := plan.asked.threads or min(cpus, torch.get_num_threads())) > cpus:
        raise ConfigError(f"--cpus {threads}: this machine has {cpus} CPUs; give as many at most")
    logging.getLogger("medray.serving.opening").setLevel(logging.WARNING)

    def answers(tasks: list[ReadTask], work: Work) -> Iterator[tuple[int, int]]:
        worker = Worker(work, "cuda" if torch.cuda.is_available() else "cpu", is_timed=False)
        for task in tasks:
            for piece in task.pieces(plan.columns, work.record):
                note = worker.answer(piece)
                yield note.answered, note.set_aside

    by = f"in this process (up to {MOST_ROWS:,} rows are; --actors N has Ray answer them)"
    return run.predict(
        plan, counted, heart, answers, piece_rows=_PIECE_ROWS, threads=threads, by=by
    )
