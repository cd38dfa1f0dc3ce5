"""A release ready to answer: adapter merged into the base, proven by its probe, in the faster arithmetic."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np

from medray.config.study import Precision
from medray.engines.transformers import TransformersEngine
from medray.errors import ServingError
from medray.evaluation.novelty import Cloud
from medray.models.precision import cast as cast_model
from medray.models.precision import cast_within, fastest
from medray.registry.loading import LoadedRelease, read_cloud
from medray.registry.release import Release
from medray.serving.autotune import generates, time_steps, time_texts
from medray.serving.batching import Batcher, Floats, TooManyTokensError, tail_length
from medray.serving.chat import Chat
from medray.serving.notes import far
from medray.serving.schemas import AppOptions
from medray.serving.service import Described
from medray.serving.streams import Streams
from medray.tasks.base.protocol import Chatting
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
Measure = TypeVar("Measure")


@dataclass(frozen=True)
class Head:
    """A loaded release whose requests share batches. A request keeps the head it began with, so a switch never mixes two models."""

    loaded: LoadedRelease
    batcher: Batcher
    streams: Streams
    cloud: Cloud | None = None  # what embeddings are compared with, where texts unlike the training are flagged

    @property
    def task(self) -> Served:
        return cast(Served, self.loaded.task)  # as `open_head` has checked

    @property
    def path(self) -> str:
        return self.task.routes[0].path

    def answer(self, request: TextRequest, *, max_tokens: int, deadline: float) -> TextResponse:
        turn = Turn(self.batcher, self.streams, max_tokens, deadline, self.cloud)
        examples = request.examples()
        answers = self.task.respond(replace(self.loaded, engine=turn).predict(examples))
        response = self.task.routes[0].response
        return response(release=self.loaded.name, version=self.loaded.version, notes=self._notes(turn, examples), predictions=answers)

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
        return Described(self.loaded.name, self.loaded.version)


@dataclass(frozen=True)
class _Opening:
    """A loaded release whose precision is not chosen yet."""

    loaded: LoadedRelease
    options: AppOptions
    thread: Executor

    def engine(self, precision: Precision) -> TransformersEngine:
        engine = self.loaded.in_precision(precision, token_budget=self.options.token_budget).engine
        assert isinstance(engine, TransformersEngine)
        return engine

    def time(self, measure: Callable[[TransformersEngine], Measure]) -> dict[Precision, Measure]:
        """A measure of each precision that the options allow."""
        precision = self.options.precision
        candidates: list[Precision] = ["fp32", "bf16"] if precision == "auto" else [precision]
        measures = {}
        for candidate in candidates:
            with self._cast_within(candidate):
                measures[candidate] = measure(self.engine(candidate))
        return measures

    def _cast_within(self, precision: Precision) -> AbstractContextManager[None]:
        # 4-bit layers follow autocast themselves.
        built = self.loaded.built
        return cast_within(built.model, built.family, precision) if self.loaded.is_merged else nullcontext()

    def settle(self, precision: Precision) -> tuple[LoadedRelease, TransformersEngine, Streams]:
        if self.loaded.is_merged:
            cast_model(self.loaded.built.model, self.loaded.built.family, precision)
        engine, options = self.engine(precision), self.options
        streams = Streams(
            engine.generation, self.thread, token_budget=options.generation_tokens, waiting_tokens=options.limits.waiting_tokens
        )
        return replace(self.loaded, engine=engine, precision=precision), engine, streams


def open_head(release: Release, options: AppOptions, thread: Executor, *, device: str) -> Head | Chat:
    """Load and merge a release in a thread that ends, then time it in the one that will compute.

    Every thread that computes keeps OpenMP workers until it ends, and with more of them than cores they sleep between
    layers: a second such thread took the first from 1.9 to 1.4 of two cores.
    """
    with ThreadPoolExecutor(1, "load") as loader:
        loaded = loader.submit(partial(release.load, device=device, merge=True)).result()
    opening = _Opening(loaded, options, thread)
    if isinstance(loaded.task, Chatting):
        loaded, engine, streams = opening.settle(_faster_steps(opening))
        window = getattr(loaded.built.model.config, "max_position_embeddings", None) or engine.tokenizer.model_max_length
        return Chat.open(loaded, streams, window)
    if not isinstance(loaded.task, Served):
        known = ", ".join([*served_tasks(), "those of tasks that talk"])
        raise ServingError(f"{loaded.reference}: its task {loaded.task.options.name!r} has no route; releases that have: {known}")
    return _open_head(opening)


def _faster_steps(opening: _Opening) -> Precision:
    seconds = opening.time(lambda engine: time_steps(engine, opening.thread))
    precision = fastest(seconds)
    log.info("%s: %s; seconds of a step: %s", opening.loaded.reference, precision, seconds)
    return precision


def _open_head(opening: _Opening) -> Head:
    options, overhead, task = opening.options, 1, opening.loaded.task
    if opening.loaded.built.head is None and generates(opening.engine("fp32"), task):
        precision = _faster_steps(opening)
    else:
        timings = opening.time(lambda engine: time_texts(engine, task, opening.thread))
        precision = fastest({name: timing.full_s for name, timing in timings.items()})
        overhead = timings[precision].overhead_tokens
        log.info("%s: %s, a batch costs as much as %d tokens; %s", opening.loaded.reference, precision, overhead, timings)
    loaded, engine, streams = opening.settle(precision)
    cloud = read_cloud(loaded.folder) if options.flag_unlike_training else None
    batcher = Batcher(
        engine,
        opening.thread,
        token_budget=options.token_budget,
        waiting_tokens=options.limits.waiting_tokens,
        overhead_tokens=overhead,
        outputs=engine.embedded if cloud else None,
    )
    return Head(loaded, batcher, streams, cloud)
