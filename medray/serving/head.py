"""A release ready to answer: adapter merged into the base, proven by its probe, in the faster arithmetic."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from medray.config.study import Precision
from medray.engines.transformers import TransformersEngine
from medray.errors import ServingError
from medray.evaluation.novelty import Cloud
from medray.models import precision as half
from medray.models.build import Built, merge
from medray.records import CalibrationRecord
from medray.registry.answers import calibrated
from medray.registry.loading import answers, prove, read_cloud
from medray.registry.release import Release
from medray.serving.autotune import fastest, generates, time_steps, time_texts
from medray.serving.batching import Batcher, Floats, TooManyTokensError, tail_length
from medray.serving.chat import Chat
from medray.serving.notes import far
from medray.serving.schemas import AppOptions, Described
from medray.serving.streams import Streams
from medray.tasks.base.protocol import Chatting, Task
from medray.tasks.base.route import InputNote, Served, TextRequest, TextResponse, served_tasks
from medray.types import Chunk, Example, Sampling


@dataclass(frozen=True)
class Turn:
    """The engine as one request sees it: its rows go with those of others, within its limit and time."""

    batcher: Batcher
    streams: Streams
    max_tokens: int
    deadline: float
    cloud: Cloud | None = None  # of embeddings, where the batcher's engine makes them beside its outputs
    distances: list[float] = field(default_factory=list)  # of the rows that were asked, in their order

    @property
    def tokenizer(self) -> Any:
        return self.batcher.engine.tokenizer

    def logits(self, inputs: Sequence[Sequence[int]]) -> Floats:
        self._check(sum(map(len, inputs)))
        found = self.batcher.logits(inputs, self.deadline)
        if self.cloud is None:
            return found
        outputs, embeddings = np.split(found, [-len(self.cloud.centre)], axis=1)
        self.distances.extend(self.cloud.distances(embeddings).tolist())
        return outputs

    def token_logits(self, inputs: Sequence[Sequence[int]]) -> list[Floats]:
        self._check(sum(map(len, inputs)))
        return self.batcher.token_logits(inputs, self.deadline)

    def score(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> Floats:
        self._check(sum(map(len, prompts)) + len(prompts) * tail_length(continuations))
        return self.batcher.score(prompts, tuple(map(tuple, continuations)), self.deadline)

    def generate(self, prompts: Sequence[str] | Sequence[Sequence[int]], sampling: Sampling) -> Iterator[Chunk]:
        rows = [self.tokenizer(prompt, split_special_tokens=True)["input_ids"] if isinstance(prompt, str) else prompt for prompt in prompts]
        self._check(sum(len(row) + sampling.max_tokens for row in rows))
        return iter(self.streams.collect(rows, sampling, self.deadline))

    def _check(self, tokens: int) -> None:
        if tokens > self.max_tokens:
            raise TooManyTokensError(f"{tokens} tokens in one request, at most {self.max_tokens} are read")


log = logging.getLogger(__name__)
Found = TypeVar("Found")


@dataclass(frozen=True)
class Head:
    """One version of a release. A request holds on to the one it began with, so a switch never mixes two models."""

    release: str
    version: int
    task: Served
    batcher: Batcher
    streams: Streams
    precision: Precision
    calibration: CalibrationRecord
    cloud: Cloud | None = None  # what embeddings are compared with, where texts unlike the training are flagged

    @property
    def path(self) -> str:
        return self.task.routes[0].path

    def answer(self, request: TextRequest, *, max_tokens: int, deadline: float) -> TextResponse:
        turn = Turn(self.batcher, self.streams, max_tokens, deadline, self.cloud)
        examples = request.examples()
        answers = self.task.respond(calibrated(self.task, self.calibration, self.task.predict(turn, examples)))
        notes = self._notes(turn, examples)
        response = self.task.routes[0].response
        return response(release=self.release, version=self.version, notes=notes, predictions=answers)

    def _notes(self, turn: Turn, examples: Sequence[Example]) -> tuple[InputNote, ...]:
        """Of each text how far its rows are from those of the training, in the mean."""
        if self.cloud is None:
            return ()
        owners: Sequence[int] = range(len(examples))
        if len(turn.distances) > len(examples):  # windows, in the order of their texts
            numbered = [replace(example, id=str(number)) for number, example in enumerate(examples)]
            owners = [int(row.row_id) for row in self.task.encode(numbered, turn.tokenizer)]
        found = np.bincount(owners, turn.distances) / np.bincount(owners)
        return tuple(InputNote(distance=round(one, 3), unlike_training=far(one, self.cloud)) for one in found.tolist())

    def describe(self) -> Described:
        return Described(self.release, self.version)


@dataclass(frozen=True)
class _Opening:
    """A release that is loaded and not yet in its arithmetic."""

    release: Release
    options: AppOptions
    built: Built
    thread: Executor
    device: str

    @property
    def casts(self) -> bool:
        return self.release.serves_merged()  # 4-bit layers follow autocast themselves

    def engine(self, precision: Precision) -> TransformersEngine:
        return TransformersEngine(self.built, precision=precision, token_budget=self.options.token_budget, device=self.device)

    def timed(self, measure: Callable[[TransformersEngine], Found]) -> dict[Precision, Found]:
        asked = self.options.precision
        tried: list[Precision] = ["fp32", "bf16"] if asked == "auto" else [asked]
        found = {}
        for used in tried:
            with self._in(used):
                found[used] = measure(self.engine(used))
        return found

    def _in(self, precision: Precision) -> AbstractContextManager[None]:
        return half.cast_within(self.built, precision) if self.casts else nullcontext()

    def settled(self, precision: Precision) -> tuple[TransformersEngine, Streams]:
        if self.casts:
            half.cast(self.built, precision)
        engine, options = self.engine(precision), self.options
        streams = Streams(
            engine.generation, self.thread, token_budget=options.generation_tokens, waiting_tokens=options.limits.waiting_tokens
        )
        return engine, streams


def open_head(release: Release, options: AppOptions, thread: Executor, *, device: str) -> Head | Chat:
    """Loaded and merged in a thread that ends, then timed in the one that will compute.

    Every thread that computes keeps OpenMP workers until it ends, and with more of them than cores they sleep between
    layers: a second such thread took the first from 1.9 to 1.4 of two cores.
    """
    with ThreadPoolExecutor(1, "load") as loader:
        built, task = loader.submit(_load, release, options, device).result()
    opening = _Opening(release, options, built, thread, device)
    if isinstance(task, Chatting):
        used = _faster_steps(opening)
        record, (engine, streams) = release.record, opening.settled(used)
        window = getattr(built.model.config, "max_position_embeddings", None) or engine.tokenizer.model_max_length
        return Chat.open(record.name, record.version, task, engine.tokenizer, streams, used, window)
    assert isinstance(task, Served), "a release that nothing serves was refused"
    return _open_head(opening, task)


def _faster_steps(opening: _Opening) -> Precision:
    timed = opening.timed(lambda engine: time_steps(engine, opening.thread))
    used = fastest(timed)
    log.info("%s: %s; seconds of a step: %s", opening.release.reference, used, timed)
    return used


def _open_head(opening: _Opening, task: Served) -> Head:
    record, options, overhead = opening.release.record, opening.options, 1
    if opening.built.head is None and generates(opening.engine("fp32"), task):
        used = _faster_steps(opening)
    else:
        timed = opening.timed(lambda engine: time_texts(engine, task, opening.thread))
        used = fastest({name: timing.full_s for name, timing in timed.items()})
        overhead = timed[used].overhead_tokens
        log.info("%s: %s, a batch costs as much as %d tokens; %s", opening.release.reference, used, overhead, timed)
    engine, streams = opening.settled(used)
    cloud = read_cloud(opening.release.folder()) if options.flag_unlike_training else None
    batcher = Batcher(
        engine,
        opening.thread,
        token_budget=options.token_budget,
        waiting_tokens=options.limits.waiting_tokens,
        overhead_tokens=overhead,
        outputs=engine.embedded if cloud else None,
    )
    return Head(record.name, record.version, task, batcher, streams, used, record.calibration, cloud)


def _load(release: Release, options: AppOptions, device: str) -> tuple[Built, Task]:
    """Hashes, base weights and probe are compared by the load; the merged model must answer the probe as well.

    A 4-bit release whose merge was not measured, or changed its F1, answers unmerged.
    """
    loaded = release.load(device=device)
    if not isinstance(loaded.task, Served | Chatting):
        known = ", ".join([*served_tasks(), "those of tasks that talk"])
        raise ServingError(f"{release.reference}: its task {loaded.task.options.name!r} has no route; releases that have: {known}")
    if not release.serves_merged():
        return loaded.built, loaded.task
    built = replace(loaded.built, model=merge(loaded.built).eval())
    merged = TransformersEngine(built, precision="fp32", token_budget=options.token_budget, device=device)
    prove(release.folder(), loaded.manifest.probe, answers(loaded.task, merged))
    return built, loaded.task
