"""A library on Ray Data: readers cut pieces, a pool of actors answers and writes them, the driver
counts."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
import torch
from ray.exceptions import RayError

from medray.batch import pieces, run
from medray.batch.output import Record, Summary
from medray.batch.run import Counted, Plan, ReadTask
from medray.batch.shards import Columns
from medray.batch.sources import Source
from medray.batch.worker import Work, Worker
from medray.data.meter import Heartbeat
from medray.errors import ConfigError, MedrayError
from medray.runtime.cluster import Cluster

_MOST_ACTORS_A_NODE = 8  # by default: each holds the model in memory


@dataclass(frozen=True)
class Pool:
    actors: int
    threads: int
    gpus: float  # of each actor

    @classmethod
    def of(cls, cluster: Cluster, actors: int | None, threads: int | None) -> "Pool":
        """An actor a GPU; without any, actors of one thread, which answer more together than one of
        many, up to 8 a node."""
        if cluster.gpus:
            return cls(actors or int(cluster.gpus), threads or 1, 1.0)
        if threads is None:
            most = max(int(node.cpus) for node in cluster.nodes)
            threads = max(1, -(-most // _MOST_ACTORS_A_NODE))
        fitting = sum(int(node.cpus) // threads for node in cluster.nodes)
        if not fitting:
            raise ConfigError(
                f"--cpus {threads}: no node has so many CPUs; the largest has "
                f"{max(node.cpus for node in cluster.nodes):g}"
            )
        return cls(min(actors or fitting, fitting), threads, 0.0)


def predict(plan: Plan, cluster: Cluster, heart: Heartbeat) -> Summary:
    asked = plan.asked
    pool = Pool.of(cluster, asked.actors, asked.threads)
    with _plainly():
        heart.stage(run.reading(plan.source))
        counted = Counted.of(
            plan.source, _scans(plan.source, plan.columns, asked.most_characters), asked.max_bad
        )
        return run.predict(
            plan,
            counted,
            heart,
            lambda tasks, work: _answers(tasks, plan.columns, work, pool),
            piece_rows=pieces.num_rows(counted.total, pool.actors),
            threads=pool.threads,
            by=f"with {pool.actors} {'actors' if pool.actors > 1 else 'actor'} of Ray",
        )


def _scans(source: Source, columns: Columns, most_characters: int) -> list[pieces.Scan]:
    scan = ray.remote(num_cpus=1)(pieces.scan)
    return list(ray.get([scan.remote(shard, columns, most_characters) for shard in source.shards]))


def _answers(
    tasks: list[ReadTask], columns: Columns, work: Work, pool: Pool
) -> Iterator[tuple[int, int]]:
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # medray shows the progress itself
    data = ray.data.from_items(
        [{"task": task.dumps()} for task in tasks], override_num_blocks=len(tasks)
    )
    data.context.enable_progress_bars = False
    data.context.print_on_execution_start = False
    data.context.raise_original_map_exception = (
        True  # Ray's wrapper loses what it wraps on its way here, but for the text
    )
    data.context.target_max_block_size = (
        1  # a block a piece: else the pieces of a file would wait for each other, for one actor
    )
    data = data.map_batches(
        read_pieces,
        fn_kwargs={"columns": columns, "record": work.record},
        batch_size=1,
        batch_format="pyarrow",
        # little beside the model: with a CPU of its own it would wait for ever on a node that the
        # actors fill
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(min(len(tasks), pool.actors)),
    )
    data = data.map_batches(
        Actor,
        fn_constructor_args=(work,),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=pool.threads,
        num_gpus=pool.gpus or None,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=pool.actors, initial_size=pool.actors
        ),
    )
    for row in data.iter_rows():
        yield row["answered"], row["set_aside"]


def read_pieces(batch: pa.Table, columns: Columns, record: Record) -> Iterator[pa.Table]:
    for text in batch["task"].to_pylist():
        for piece in ReadTask.loads(text).pieces(columns, record):
            yield piece.table()


class Actor(Worker):
    def __init__(self, work: Work) -> None:
        given = ray.get_runtime_context().get_assigned_resources()
        super().__init__(work, "cuda" if given.get("GPU") and torch.cuda.is_available() else "cpu")


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
