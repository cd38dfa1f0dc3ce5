"""A loaded release whose requests share batches: rows of similar length together, one batch at a
time, in one thread. Knows no Ray.

A batch starts from the row that waited longest and takes those nearest to it in length, as long as
that costs less padding than a batch of their own would cost: nobody starves, nobody waits for a
timer, and each request is answered when its own rows are done."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from medray.engines.base import tokenize
from medray.errors import ServingError
from medray.evaluation.calibration import calibrate
from medray.evaluation.novelty import Cloud
from medray.registry.loading import LoadedRelease
from medray.serving.notes import far
from medray.serving.service import Description
from medray.serving.streams import LateError, OverloadedError, Streams
from medray.tasks.base.route import InputNote, Served, TextRequest, TextResponse
from medray.types import Chunk, Engine, Example, Floats32, Sampling

Continuations = tuple[tuple[int, ...], ...]


class TooManyTokensError(ServingError):
    """One request asks for more tokens than it may."""


@dataclass(eq=False)
class _Request:
    """One request: its rows' outputs as they come in."""

    num_missing: int
    outputs: dict[int, Floats32] = field(default_factory=dict)
    answer: "Future[list[Floats32]]" = field(default_factory=Future)


@dataclass(frozen=True, eq=False)
class _Row:
    tokens: Sequence[int]
    position: int
    request: _Request
    continuations: Continuations | None = (
        None  # to score behind these tokens; None asks for head outputs
    )
    length: int = 0
    per_token: bool = False  # of a head that reads tokens


class Batcher:
    def __init__(
        self,
        engine: Engine,
        thread: Executor,
        *,
        token_budget: int,
        waiting_tokens: int,
        overhead_tokens: int,
        outputs: Callable[[Sequence[Sequence[int]]], Floats32] | None = None,
    ) -> None:
        self._outputs_of = (
            outputs or engine.logits
        )  # embeddings may stand beside the head's outputs
        self.engine, self.token_budget, self.waiting_tokens = engine, token_budget, waiting_tokens
        self.overhead_tokens = (
            overhead_tokens  # a batch costs as much as this many tokens before its first one
        )
        # of one worker, shared by all models of a process: two would fight over the same cores
        self.thread = thread
        self._lock = threading.Lock()
        self._waiting: list[_Row] = []

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def logits(self, inputs: Sequence[Sequence[int]], deadline: float) -> Floats32:
        """Outputs of a request's rows, by `time.monotonic() == deadline` or not at all."""
        return np.stack(self._outputs(inputs, deadline, per_token=False))

    def token_logits(self, inputs: Sequence[Sequence[int]], deadline: float) -> list[Floats32]:
        """A matrix of outputs for each of a request's rows, likewise."""
        return self._outputs(inputs, deadline, per_token=True)

    def _outputs(
        self, inputs: Sequence[Sequence[int]], deadline: float, *, per_token: bool
    ) -> list[Floats32]:
        request = _Request(len(inputs))
        rows = [
            _Row(row, position, request, None, len(row), per_token)
            for position, row in enumerate(inputs)
        ]
        return self._wait(rows, request, deadline)

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Continuations, deadline: float
    ) -> Floats32:
        """Scores of a request's prompts, likewise; those of requests with the same continuations
        are made together."""
        request, behind = _Request(len(prompts)), tail_length(continuations)
        rows = [
            _Row(row, position, request, continuations, len(row) + behind)
            for position, row in enumerate(prompts)
        ]
        return np.stack(self._wait(rows, request, deadline))

    def _wait(self, rows: list[_Row], request: _Request, deadline: float) -> list[Floats32]:
        with self._lock:
            tokens = sum(row.length for row in [*self._waiting, *rows])
            if tokens > self.waiting_tokens:
                raise OverloadedError(
                    f"{tokens} tokens would wait, at most {self.waiting_tokens} may"
                )
            self._waiting += rows
        self.thread.submit(self._compute)
        try:
            return request.answer.result(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            self._forget(request)
            raise LateError("the answer was not ready in time") from None

    def _compute(self) -> None:
        with self._lock:
            batch = self._take()
        if not batch:
            return
        try:
            found = self._compute_batch(batch)
        except Exception as err:  # whatever it is, the requests that wait get it
            for row in batch:
                if not row.request.answer.done():
                    row.request.answer.set_exception(err)
                self._forget(row.request)
        else:
            for row, outputs in zip(batch, found, strict=True):
                _deliver(row, outputs)
        # One batch a turn, so that a model which is being replaced and its successor both go on.
        if self._waiting:
            self.thread.submit(self._compute)

    def _compute_batch(self, batch: Sequence[_Row]) -> Sequence[Floats32]:
        """A batch asks one thing: a release has one kind of head, and rows with other continuations
        wait for their own."""
        tokens, first = [row.tokens for row in batch], batch[0]
        if first.continuations is not None:
            return list(self.engine.score(tokens, first.continuations))
        return (
            self.engine.token_logits(tokens) if first.per_token else list(self._outputs_of(tokens))
        )

    def _take(self) -> list[_Row]:
        if not self._waiting:
            return []
        first = self._waiting[0]
        alike = [
            at for at, row in enumerate(self._waiting) if row.continuations == first.continuations
        ]
        nearest = sorted(alike, key=lambda at: abs(self._waiting[at].length - first.length))
        chosen: list[int] = []
        longest = size = 0
        for at in nearest:
            length = self._waiting[at].length
            larger = (len(chosen) + 1) * max(longest, length)
            if chosen and (
                larger > self.token_budget or larger > size + length + self.overhead_tokens
            ):
                continue
            chosen.append(at)
            longest, size = max(longest, length), larger
        batch = [self._waiting[at] for at in chosen]
        left = set(chosen)
        self._waiting = [row for at, row in enumerate(self._waiting) if at not in left]
        return batch

    def _forget(self, request: _Request) -> None:
        with self._lock:
            self._waiting = [row for row in self._waiting if row.request is not request]


def _deliver(row: _Row, outputs: Floats32) -> None:
    request = row.request
    request.outputs[row.position] = outputs
    request.num_missing -= 1
    if not request.num_missing and not request.answer.done():
        request.answer.set_result(
            [request.outputs[position] for position in range(len(request.outputs))]
        )


def tail_length(continuations: Sequence[Sequence[int]]) -> int:
    """Tokens behind each prompt; the last of a continuation is only predicted."""
    return sum(len(ids) - 1 for ids in continuations)


@dataclass(frozen=True)
class Turn:
    """The engine as one request sees it: its rows go with those of others, within its limit and
    time."""

    batcher: Batcher
    streams: Streams
    max_tokens: int
    deadline: float
    cloud: Cloud | None = (
        None  # of embeddings, where the batcher's engine makes them beside its outputs
    )
    distances: list[float] = field(
        default_factory=list
    )  # of the rows that were asked, in their order

    @property
    def tokenizer(self) -> Any:
        return self.batcher.engine.tokenizer

    def logits(self, inputs: Sequence[Sequence[int]]) -> Floats32:
        self._check(sum(map(len, inputs)))
        found = self.batcher.logits(inputs, self.deadline)
        if self.cloud is None:
            return found
        outputs, embeddings = np.split(found, [-len(self.cloud.centre)], axis=1)
        self.distances.extend(self.cloud.distances(embeddings).tolist())
        return outputs

    def token_logits(self, inputs: Sequence[Sequence[int]]) -> list[Floats32]:
        self._check(sum(map(len, inputs)))
        return self.batcher.token_logits(inputs, self.deadline)

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> Floats32:
        self._check(sum(map(len, prompts)) + len(prompts) * tail_length(continuations))
        return self.batcher.score(prompts, tuple(map(tuple, continuations)), self.deadline)

    def generate(
        self, prompts: Sequence[str] | Sequence[Sequence[int]], sampling: Sampling
    ) -> Iterator[Chunk]:
        rows = tokenize(self.tokenizer, prompts)
        self._check(sum(len(row) + sampling.max_tokens for row in rows))
        return iter(self.streams.collect(rows, sampling, self.deadline))

    def _check(self, tokens: int) -> None:
        if tokens > self.max_tokens:
            raise TooManyTokensError(
                f"{tokens} tokens in one request, at most {self.max_tokens} are read"
            )


@dataclass(frozen=True)
class Head:
    """A loaded release whose requests share batches. A request keeps the head it began with, so a
    switch never mixes two models."""

    loaded: LoadedRelease
    batcher: Batcher
    streams: Streams
    cloud: Cloud | None = (
        None  # what embeddings are compared with, where texts unlike the training are flagged
    )

    @property
    def task(self) -> Served:
        return cast(Served, self.loaded.task)  # as `open_head` has checked

    @property
    def path(self) -> str:
        return self.task.routes[0].path

    def answer(self, request: TextRequest, *, max_tokens: int, deadline: float) -> TextResponse:
        turn = Turn(self.batcher, self.streams, max_tokens, deadline, self.cloud)
        examples = request.examples()
        predictions = calibrate(
            self.task, self.loaded.calibration, self.task.predict(turn, examples)
        )
        response, answers = self.task.routes[0].response, self.task.respond(predictions)
        return response(
            release=self.loaded.name,
            version=self.loaded.version,
            notes=self._notes(turn, examples),
            predictions=answers,
        )

    def _notes(self, turn: Turn, examples: Sequence[Example]) -> tuple[InputNote, ...]:
        """Of each text how far its rows are from those of the training, in the mean."""
        if self.cloud is None:
            return ()
        owners: Sequence[int] = range(len(examples))
        if len(turn.distances) > len(examples):  # windows, in the order of their texts
            numbered = [replace(example, id=str(number)) for number, example in enumerate(examples)]
            owners = [int(row.row_id) for row in self.task.encode(numbered, turn.tokenizer)]
        found = np.bincount(owners, turn.distances) / np.bincount(owners)
        return tuple(
            InputNote(distance=round(one, 3), unlike_training=far(one, self.cloud))
            for one in found.tolist()
        )

    def describe(self) -> Description:
        return Description(self.loaded.name, self.loaded.version)
