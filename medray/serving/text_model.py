"""A release that answers texts: its requests share batches, one batch at a time in one thread.
Imports no Ray.

A batch starts with the row that has waited longest. It adds the rows nearest in length, as long as
their padding costs less than a second batch would. So no row starves or waits for a timer, and a
request is answered when its own rows are done."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from medray.engines.base import tail_length, tokenize, tree_length
from medray.evaluation.calibration import calibrate
from medray.evaluation.novelty import Cloud
from medray.registry.loading import LoadedRelease
from medray.serving.notes import far
from medray.serving.schemas import DECISIONS_PATH, Limits
from medray.serving.service import Description, Inquiry, InquiryReply
from medray.serving.streams import LateError, OverloadedError, Streams, TooManyTokensError
from medray.tasks.base.questions import questions_of
from medray.tasks.base.route import InputNote, LabelRequest, Served, TextRequest, TextResponse
from medray.types import Branch, Chunk, Engine, Example, Floats32, Sampling

Continuations = tuple[tuple[int, ...], ...]


@dataclass(eq=False)
class _Request:
    """A request and the outputs of its rows so far."""

    num_missing: int
    outputs: dict[int, Floats32] = field(default_factory=dict)
    answer: "Future[list[Floats32]]" = field(default_factory=Future)


@dataclass(frozen=True, eq=False)
class _WaitingRow:
    tokens: Sequence[int]
    position: int
    request: _Request
    continuations: Continuations | None = None  # to score after the tokens; None: head outputs
    length: int = 0
    per_token: bool = False  # whether the head has an output per token
    branches: tuple[Branch, ...] = ()  # to score after the tokens

    @property
    def call(self) -> tuple[Continuations | None, bool]:
        """Return the call of the engine that computes the row; rows of one call share batches."""
        return self.continuations, bool(self.branches)


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
        self._outputs_of = outputs or engine.logits
        self.engine, self.token_budget, self.waiting_tokens = engine, token_budget, waiting_tokens
        self.overhead_tokens = overhead_tokens  # the fixed cost of a batch, in tokens
        # One thread for all models of a process: two would compete for the same cores.
        self.thread = thread
        self._lock = threading.Lock()
        self._waiting: list[_WaitingRow] = []

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def logits(self, inputs: Sequence[Sequence[int]], deadline: float) -> Floats32:
        """Return one row of outputs per input, or raise LateError when `deadline` passes."""
        return np.stack(self._outputs(inputs, deadline, per_token=False))

    def token_logits(self, inputs: Sequence[Sequence[int]], deadline: float) -> list[Floats32]:
        """Return a matrix of outputs per input, with one row per token."""
        return self._outputs(inputs, deadline, per_token=True)

    def _outputs(
        self, inputs: Sequence[Sequence[int]], deadline: float, *, per_token: bool
    ) -> list[Floats32]:
        request = _Request(len(inputs))
        rows = [
            _WaitingRow(row, position, request, None, len(row), per_token)
            for position, row in enumerate(inputs)
        ]
        return self._wait(rows, request, deadline)

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Continuations, deadline: float
    ) -> Floats32:
        """Return scores, with one row per prompt. Requests with the same continuations share
        batches."""
        request, behind = _Request(len(prompts)), tail_length(continuations)
        rows = [
            _WaitingRow(row, position, request, continuations, len(row) + behind)
            for position, row in enumerate(prompts)
        ]
        return np.stack(self._wait(rows, request, deadline))

    def score_branches(
        self,
        prompts: Sequence[Sequence[int]],
        branches: Sequence[Sequence[Branch]],
        deadline: float,
    ) -> list[list[Floats32]]:
        """Return scores per prompt and branch. Prompts share batches whatever their branches."""
        request = _Request(len(prompts))
        rows = [
            _WaitingRow(
                prompt, position, request, None, tree_length(prompt, own), branches=tuple(own)
            )
            for position, (prompt, own) in enumerate(zip(prompts, branches, strict=True))
        ]
        return [
            np.split(scores, np.cumsum([len(branch.continuations) for branch in own])[:-1])
            for scores, own in zip(self._wait(rows, request, deadline), branches, strict=True)
        ]

    def _wait(self, rows: list[_WaitingRow], request: _Request, deadline: float) -> list[Floats32]:
        with self._lock:
            tokens = sum(row.length for row in [*self._waiting, *rows])
            if tokens > self.waiting_tokens:
                raise OverloadedError(
                    f"{tokens} tokens would wait; at most {self.waiting_tokens} may"
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
            results = self._compute_batch(batch)
        except Exception as err:  # passed on to the requests that wait
            for row in batch:
                if not row.request.answer.done():
                    row.request.answer.set_exception(err)
                self._forget(row.request)
        else:
            for row, outputs in zip(batch, results, strict=True):
                _deliver(row, outputs)
        # One batch per turn, so that a model and its successor both progress during a switch.
        if self._waiting:
            self.thread.submit(self._compute)

    def _compute_batch(self, batch: Sequence[_WaitingRow]) -> Sequence[Floats32]:
        """Return outputs of rows that all need the same call, as `_take` selects them."""
        tokens, first = [row.tokens for row in batch], batch[0]
        if first.continuations is not None:
            return list(self.engine.score(tokens, first.continuations))
        if first.branches:
            scores = self.engine.score_branches(tokens, [row.branches for row in batch])
            return list(map(np.concatenate, scores))
        return (
            self.engine.token_logits(tokens) if first.per_token else list(self._outputs_of(tokens))
        )

    def _take(self) -> list[_WaitingRow]:
        if not self._waiting:
            return []
        first = self._waiting[0]
        alike = [at for at, row in enumerate(self._waiting) if row.call == first.call]
        nearest = sorted(alike, key=lambda at: abs(self._waiting[at].length - first.length))
        positions: list[int] = []
        longest = size = 0
        for at in nearest:
            length = self._waiting[at].length
            larger = (len(positions) + 1) * max(longest, length)
            if positions and (
                larger > self.token_budget or larger > size + length + self.overhead_tokens
            ):
                continue
            positions.append(at)
            longest, size = max(longest, length), larger
        batch = [self._waiting[at] for at in positions]
        left = set(positions)
        self._waiting = [row for at, row in enumerate(self._waiting) if at not in left]
        return batch

    def _forget(self, request: _Request) -> None:
        with self._lock:
            self._waiting = [row for row in self._waiting if row.request is not request]


def _deliver(row: _WaitingRow, outputs: Floats32) -> None:
    request = row.request
    request.outputs[row.position] = outputs
    request.num_missing -= 1
    if not request.num_missing and not request.answer.done():
        request.answer.set_result(
            [request.outputs[position] for position in range(len(request.outputs))]
        )


@dataclass(frozen=True)
class Turn:
    """The engine of one request: its rows share batches with those of other requests, within the
    request's own limit and deadline."""

    batcher: Batcher
    streams: Streams
    max_tokens: int
    deadline: float
    cloud: Cloud | None = None  # set if the batcher's outputs end with embeddings
    distances: list[float] = field(default_factory=list)  # from the cloud, one per row
    tokens: Counter[str] = field(default_factory=Counter)  # "input" and "output", so far

    @property
    def tokenizer(self) -> Any:
        return self.batcher.engine.tokenizer

    def logits(self, inputs: Sequence[Sequence[int]]) -> Floats32:
        self._check(sum(map(len, inputs)))
        rows = self.batcher.logits(inputs, self.deadline)
        if self.cloud is None:
            return rows
        outputs, embeddings = np.split(rows, [-len(self.cloud.centre)], axis=1)
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

    def score_branches(
        self, prompts: Sequence[Sequence[int]], branches: Sequence[Sequence[Branch]]
    ) -> list[list[Floats32]]:
        self._check(sum(map(tree_length, prompts, branches)))
        return self.batcher.score_branches(prompts, branches, self.deadline)

    def generate(
        self, prompts: Sequence[str] | Sequence[Sequence[int]], sampling: Sampling
    ) -> Iterator[Chunk]:
        rows = tokenize(self.tokenizer, prompts)
        self._check(sum(map(len, rows)), len(rows) * sampling.max_tokens)
        chunks = self.streams.collect(rows, sampling, self.deadline)
        self.tokens["output"] += sum(chunk.num_tokens for chunk in chunks)
        return iter(chunks)

    def _check(self, num_input: int, num_output: int = 0) -> None:
        self.tokens["input"] += num_input
        tokens = self.tokens.total() + num_output
        if tokens > self.max_tokens:
            raise TooManyTokensError(
                f"the request has {tokens} tokens; send at most {self.max_tokens}"
            )


@dataclass(frozen=True)
class TextModel:
    """A loaded release whose requests share batches. A request keeps the model it began with, so
    that a switch never mixes two."""

    release: LoadedRelease
    batcher: Batcher
    streams: Streams
    cloud: Cloud | None = None  # set if texts unlike the training data are flagged

    @property
    def task(self) -> Served:
        return cast(Served, self.release.task)  # checked by `open_model`

    @property
    def path(self) -> str:
        return self.task.routes[0].path if isinstance(self.task, Served) else DECISIONS_PATH

    def takes(self, request: TextRequest) -> bool:
        """Return whether the request is one of the routes of the release's task."""
        routes = self.task.routes if isinstance(self.task, Served) else ()
        return isinstance(request, tuple(route.request for route in routes))

    def answer(self, request: TextRequest, *, limits: Limits, deadline: float) -> TextResponse:
        turn = Turn(self.batcher, self.streams, limits.tokens, deadline, self.cloud)
        examples = request.examples()
        predictions = calibrate(
            self.task, self.release.calibration, self.task.predict(turn, examples)
        )
        response, answers = self.task.routes[0].response, self.task.respond(predictions)
        notes = self._notes(turn, examples)  # before citations read the texts again
        if isinstance(request, LabelRequest) and request.citations:
            release = replace(self.release, engine=turn)
            answers = tuple(
                replace(answer, citations=release.cite(text, row, most_sentences=limits.sentences))
                for answer, text, row in zip(answers, request.texts, predictions, strict=True)
            )
        return response(
            release=self.release.name,
            version=self.release.version,
            notes=notes,
            predictions=answers,
        )

    def decide(self, inquiry: Inquiry, *, limits: Limits, deadline: float) -> InquiryReply:
        turn = Turn(self.batcher, self.streams, limits.tokens, deadline, self.cloud)
        release = replace(self.release, engine=turn)
        decisions = release.answer(inquiry.text, inquiry.questions)
        notes = (self._note(float(np.mean(turn.distances))),) if turn.distances else ()
        inputs, most = (inquiry.text, inquiry.questions, decisions.answers), limits.sentences
        citations = release.cite_answers(*inputs, most_sentences=most) if inquiry.citations else ()
        rows = decisions.rows
        of_answers = [answer.confidence for row in rows for answer in row.answers]
        sure = [*of_answers, *(row.confidence for row in rows)]
        # Metrics never hold a client's own options.
        own = set(self.task.labels).union(*(one.values for one in questions_of(self.task)))
        return InquiryReply(
            release.name,
            release.version,
            decisions.answers,
            turn.tokens["input"],
            turn.tokens["output"],
            tuple(
                "|".join(filter(own.__contains__, row.labels)) for row in rows if not row.answers
            ),
            tuple(one for one in sure if one is not None),
            notes,
            citations,
        )

    def _notes(self, turn: Turn, examples: Sequence[Example]) -> tuple[InputNote, ...]:
        """Return each text's mean distance from the training data over its rows."""
        if self.cloud is None:
            return ()
        owners: Sequence[int] = range(len(examples))
        if len(turn.distances) > len(examples):  # long texts have several windows, in order
            copies = [replace(example, id=str(number)) for number, example in enumerate(examples)]
            owners = [int(row.row_id) for row in self.task.encode(copies, turn.tokenizer)]
        means = np.bincount(owners, turn.distances) / np.bincount(owners)
        return tuple(map(self._note, means.tolist()))

    def _note(self, distance: float) -> InputNote:
        assert self.cloud is not None
        return InputNote(distance=round(distance, 3), unlike_training=far(distance, self.cloud))

    def describe(self) -> Description:
        return Description(self.release.name, self.release.version)
