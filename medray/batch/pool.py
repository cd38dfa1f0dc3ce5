"""Prediction on Ray Data: readers cut pieces, a pool of actors predicts and writes them, and the
driver counts."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayError

from medray.batch import driver, pieces
from medray.batch.driver import BatchPlan, ReadTask, RowCount
from medray.batch.inputs import Source
from medray.batch.output import Record, Summary
from medray.batch.predictor import Predictor, Work
from medray.batch.shards import TextColumns
from medray.data.meter import Heartbeat
from medray.errors import ConfigError, MedrayError
from medray.models import architecture, sources
from medray.models.device import take_device
from medray.registry.registry import Registry
from medray.runtime.cluster import Cluster, share_of_gpu
from medray.storage import checkpoint

_MOST_ACTORS_PER_NODE = 8  # by default, since each has the model in memory
_SMALL = 300_000_000  # weights of a model of which any GPU holds several
_ACTORS_PER_GPU = 4


@dataclass(frozen=True)
class Pool:
    actors: int
    threads: int
    gpus: float  # per actor

    @classmethod
    def of(
        cls, cluster: Cluster, actors: int | None, threads: int | None, *, per_gpu: int = 1
    ) -> "Pool":
        """Return at most `per_gpu` actors per GPU, as many as there are CPUs for. Without GPUs,
        return up to 8 actors per node with few threads: they are faster in total than one actor
        with many threads."""
        if num_gpus := int(cluster.gpus):
            threads = threads or 1
            most = max(num_gpus, min(num_gpus * per_gpu, int(cluster.cpus) // threads))
            actors = actors or most
            return cls(actors, threads, share_of_gpu(actors, num_gpus))
        if threads is None:
            most = max(int(node.cpus) for node in cluster.nodes)
            threads = max(1, -(-most // _MOST_ACTORS_PER_NODE))
        fitting = sum(int(node.cpus) // threads for node in cluster.nodes)
        if not fitting:
            raise ConfigError(
                f"--cpus {threads}: no node has so many CPUs; give at most "
                f"{max(node.cpus for node in cluster.nodes):g}"
            )
        return cls(min(actors or fitting, fitting), threads, 0.0)


def predict(plan: BatchPlan, cluster: Cluster, heart: Heartbeat) -> Summary:
    request = plan.request
    per_gpu = actors_per_gpu(plan) if cluster.gpus else 1
    pool = Pool.of(cluster, request.actors, request.threads, per_gpu=per_gpu)
    with _own_errors():
        heart.stage(driver.render_reading(plan.source))
        row_count = RowCount.of(
            plan.source, _scans(plan.source, plan.columns, request.most_characters), request.max_bad
        )
        return driver.predict(
            plan,
            row_count,
            heart,
            lambda tasks, work: _predict_pieces(tasks, plan.columns, work, pool),
            piece_rows=pieces.num_rows(row_count.total, pool.actors),
            threads=pool.threads,
            by=f"with {pool.actors} {'actors' if pool.actors > 1 else 'actor'} of Ray",
        )


def actors_per_gpu(plan: BatchPlan) -> int:
    """Return the actors that share a GPU. With a small model, an actor spends most of its time on
    tokens while the GPU waits."""
    release = Registry(plan.request.storage_path).resolve(f"{plan.name}@{plan.version}")
    model = checkpoint.read(release.folder()).model
    try:
        network, _ = architecture.outline(sources.config_dir(model.source, model.revision))
    except MedrayError:  # of a base model that only the nodes have
        return 1
    num_weights = sum(parameter.numel() for parameter in network.parameters())
    return _ACTORS_PER_GPU if num_weights <= _SMALL else 1


def _scans(source: Source, columns: TextColumns, most_characters: int) -> list[pieces.Scan]:
    scan = ray.remote(num_cpus=1)(pieces.scan)
    return list(ray.get([scan.remote(shard, columns, most_characters) for shard in source.shards]))


def _predict_pieces(
    tasks: list[ReadTask], columns: TextColumns, work: Work, pool: Pool
) -> Iterator[tuple[int, int]]:
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # medray prints the progress itself
    data = ray.data.from_items(
        [{"task": task.dumps()} for task in tasks], override_num_blocks=len(tasks)
    )
    data.context.enable_progress_bars = False
    data.context.print_on_execution_start = False
    # Ray's wrapper loses the original error on its way here, except for its text.
    data.context.raise_original_map_exception = True
    # One block per piece: otherwise the pieces of a file would wait for each other, for one actor.
    data.context.target_max_block_size = 1
    data = data.map_batches(
        read_pieces,
        fn_kwargs={"columns": columns, "record": work.record},
        batch_size=1,
        batch_format="pyarrow",
        # Reading needs little CPU. With a CPU of its own it would wait forever on a node that the
        # actors fill.
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


def read_pieces(batch: pa.Table, columns: TextColumns, record: Record) -> Iterator[pa.Table]:
    for text in batch["task"].to_pylist():
        for piece in ReadTask.loads(text).pieces(columns, record):
            yield piece.table()


class Actor(Predictor):
    def __init__(self, work: Work) -> None:
        gpus = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
        super().__init__(work, take_device(gpus))


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise an error of medray that crossed Ray's processes in its original form."""
    try:
        yield
    except (MedrayError, RayError) as err:
        cause: Any = err
        while cause := getattr(cause, "cause", None) or getattr(cause, "__cause__", None):
            if isinstance(cause, MedrayError) and not isinstance(cause, RayError):
                raise type(cause)(str(cause)) from None
        raise
