"""A release ready to answer: adapter merged into the base, proven by its probe, in the faster arithmetic."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from medray.answering import calibrated
from medray.data.base import Example
from medray.engines.transformers import Engine
from medray.errors import ServingError
from medray.loading import PROBE_TEXTS, answers, prove
from medray.models.build import Built, merge
from medray.records import CalibrationRecord
from medray.registry import Release
from medray.serving.batching import Batcher, Counting, Turn
from medray.serving.schemas import ROUTES, AppOptions, Request, Response, Route
from medray.tasks.base import Task

log = logging.getLogger(__name__)
Precision = Literal["fp32", "bf16", "fp16"]
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_TIMED_TOKENS = 1024  # as in a busy moment, and little enough that a load takes about a second more


@dataclass(frozen=True)
class Head:
    """One version of a release. A request holds on to the one it began with, so a switch never mixes two models."""

    release: str
    version: int
    task: Task
    batcher: Batcher
    precision: Precision
    calibration: CalibrationRecord

    @property
    def route(self) -> Route:
        return ROUTES[self.task.options.name]

    def answer(self, request: Request, *, max_tokens: int, deadline: float) -> Response:
        turn = Turn(self.batcher, max_tokens, deadline)
        said = self.task.respond(calibrated(self.task, self.calibration, self.task.predict(turn, self.task.examples(request))))
        return self.route.response.model_validate({"release": self.release, "version": self.version, **said.model_dump()})


def open_head(release: Release, options: AppOptions, thread: Executor, *, device: str) -> Head:
    """Loaded and merged in a thread that ends, then timed in the one that will compute.

    Every thread that computes keeps OpenMP workers until it ends, and with more of them than cores they sleep between
    layers: a second such thread took the first from 1.9 to 1.4 of two cores.
    """
    with ThreadPoolExecutor(1, "load") as loader:
        built, task = loader.submit(_load, release, options, device).result()

    def engine(used: Precision) -> Engine:
        return Engine(built, precision=used, token_budget=options.token_budget, device=device)

    tried: list[Precision] = ["fp32", "bf16"] if options.precision == "auto" else [options.precision]
    timed = {used: _time(engine(used), task, thread) for used in tried}
    used = min(timed, key=lambda name: timed[name].full_s)
    log.info("%s: %s, a batch costs as much as %d tokens; %s", release.reference, used, timed[used].overhead_tokens, timed)
    if used != "fp32" and release.serves_merged():  # 4-bit layers follow autocast themselves
        _cast_linears(built.model, _TYPES[used])
    batcher = Batcher(
        engine(used),
        thread,
        token_budget=options.token_budget,
        waiting_tokens=options.limits.waiting_tokens,
        overhead_tokens=timed[used].overhead_tokens,
    )
    return Head(release.record.name, release.record.version, task, batcher, used, release.record.calibration)


def _load(release: Release, options: AppOptions, device: str) -> tuple[Built, Task]:
    """Hashes, base weights and probe are compared by the load; the merged model must answer the probe as well.

    A 4-bit release whose merge was not measured, or changed its F1, answers unmerged.
    """
    loaded = release.load(device=device)
    if loaded.task.options.name not in ROUTES:
        raise ServingError(f"{release.reference}: its task {loaded.task.options.name!r} has no route; those that have: {', '.join(ROUTES)}")
    if not release.serves_merged():
        return loaded.built, loaded.task
    built = replace(loaded.built, model=merge(loaded.built).eval())
    merged = Engine(built, precision="fp32", token_budget=options.token_budget, device=device)
    prove(release.folder(), loaded.manifest.probe, answers(loaded.task, merged))
    return built, loaded.task


@dataclass(frozen=True)
class _Timing:
    """Seconds of a batch of one short text, and of one as in a busy moment, and how many tokens more that has."""

    small_s: float
    full_s: float
    tokens: int

    @property
    def overhead_tokens(self) -> int:
        per_token = max(self.full_s - self.small_s, 1e-9) / self.tokens
        return min(int(self.small_s / per_token), 1 << 20)


def _time(engine: Engine, task: Task, thread: Executor) -> _Timing:
    """The best of a few, so that a load beside live traffic judges as one on a quiet machine would.

    Asked is what the probe asks, which reads and scores as an answer does: one that is written would take a load a minute.
    """
    few = [Example("few", PROBE_TEXTS[2])]
    head = task.head()
    counting = Counting(engine, len(head.labels) if head else 0)
    task.probe(counting, few)
    length, small = max(1, task.options.max_length // 2), counting.num_tokens
    text = " ".join([PROBE_TEXTS[2]] * max(1, length // len(engine.tokenizer(PROBE_TEXTS[2])["input_ids"])))
    many = [Example(str(number), text) for number in range(max(2, _TIMED_TOKENS // max(length, small)))]
    task.probe(counting, many)
    seconds = [tuple(thread.submit(_seconds, engine, task, rows).result() for rows in (few, many)) for _ in range(4)]
    tokens = max(1, counting.num_tokens - 2 * small)
    return _Timing(min(small_s for small_s, _ in seconds), min(full_s for _, full_s in seconds), tokens)


def _seconds(engine: Engine, task: Task, examples: Sequence[Example]) -> float:
    start = time.perf_counter()
    task.probe(engine, examples)  # its result is on the CPU, so the device has finished
    return time.perf_counter() - start


def _cast_linears(model: Any, dtype: torch.dtype) -> None:
    """What autocast would do at every call, once: the same numbers, without 4 % of the time."""
    # An output layer that shares its weights with the embeddings stays: what flows between layers would be rounded with them.
    shared = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and id(module.weight) not in shared:
            module.to(dtype)
