"""Generates the texts of many requests together: one step of all rows per turn, in the thread that
computes. Imports no task and no Ray.

Between two turns, other models compute in the same thread. After prompts join, the running texts
get a step before more prompts join."""

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from medray.engines.generation import Generation, GenerationRow, RowError
from medray.errors import ServingError
from medray.types import Chunk, Sampling, gather

log = logging.getLogger(__name__)
# Called in the thread that computes, and not again after a finish or an exception.
Deliver = Callable[[Chunk | Exception], None]


class OverloadedError(ServingError):
    """The queue is full."""


class LateError(ServingError):
    """The answer was not ready in time."""


class TooManyTokensError(ServingError):
    """A request contains more tokens than one request may."""


@dataclass(eq=False)
class Stream:
    """A text that waits or is generated."""

    row: GenerationRow
    index: int  # of its prompt in the request; the row has a number of its own
    deliver: Deliver
    deadline: float
    is_cancelled: bool = False


class Streams:
    def __init__(
        self,
        make: Callable[[], Generation],
        thread: Executor,
        *,
        token_budget: int,
        waiting_tokens: int,
    ) -> None:
        self.token_budget, self.waiting_tokens = token_budget, waiting_tokens
        self._make, self._thread = make, thread
        # The first request creates it, because most releases never generate.
        self._generation: Generation | None = None
        self._lock = threading.Lock()
        self._waiting: list[Stream] = []
        self._running: dict[int, Stream] = {}  # by the number of its row
        self._numbers = itertools.count()
        self._is_turning = self._has_joined = False

    def start(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        deliver: Deliver,
        deadline: float,
        index: int = 0,
    ) -> Stream:
        """Queue a text and pass its chunks to `deliver`, until `time.monotonic() == deadline`."""
        with self._lock:
            generation = self._generation = self._generation or self._make()
            stream = Stream(
                generation.row(next(self._numbers), prompt, sampling), index, deliver, deadline
            )
            tokens = sum(
                waiting.row.most for waiting in [*self._waiting, stream] if not waiting.is_cancelled
            )
            if tokens > self.waiting_tokens:
                raise OverloadedError(
                    f"{tokens} tokens would wait; at most {self.waiting_tokens} may"
                )
            self._waiting.append(stream)
            if not self._is_turning:
                self._is_turning = True
                self._thread.submit(self._turn)
        return stream

    def cancel(self, stream: Stream) -> None:
        """Stop a text, and release its row at the next step."""
        stream.is_cancelled = True

    def collect(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, deadline: float
    ) -> list[Chunk]:
        """Return the whole texts of one request."""
        results: queue.SimpleQueue[Chunk | Exception] = queue.SimpleQueue()
        seeds = [
            sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + at)
            for at in range(len(prompts))
        ]
        streams: list[Stream] = []
        chunks: list[Chunk] = []
        missing = len(prompts)
        try:
            for index, (prompt, own) in enumerate(zip(prompts, seeds, strict=True)):
                streams.append(self.start(prompt, own, results.put, deadline, index))
            while missing:
                result = results.get(timeout=max(0.0, deadline - time.monotonic()))
                if isinstance(result, Exception):
                    raise result
                chunks.append(result)
                missing -= result.finish is not None
        except queue.Empty:
            raise LateError("the answer was not ready in time") from None
        finally:
            for stream in streams:
                self.cancel(stream)
        return gather(chunks, len(prompts))

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def _turn(self) -> None:
        generation = self._generation
        assert generation is not None
        joining = self._choose(generation)
        try:
            chunks = (
                generation.join([stream.row for stream in joining])
                if joining
                else generation.step()
                if generation.rows
                else []
            )
        except Exception as err:  # passed on to the requests that wait
            self._fail(generation, err)
        else:
            self._deliver_all(chunks)
        # One step per turn, so that other models in this thread progress too.
        with self._lock:
            self._is_turning = bool(self._waiting or self._running)
            if self._is_turning:
                self._thread.submit(self._turn)

    def _choose(self, generation: Generation) -> list[Stream]:
        """Return the streams that join now. Drop those that are cancelled or too late."""
        now = time.monotonic()
        with self._lock:
            late = [
                stream
                for stream in [*self._waiting, *self._running.values()]
                if not stream.is_cancelled and now >= stream.deadline
            ]
            for stream in late:
                stream.is_cancelled = True
            self._waiting = [stream for stream in self._waiting if not stream.is_cancelled]
            self._running = {
                number: stream
                for number, stream in self._running.items()
                if not stream.is_cancelled
            }
            generation.drop([row for row in generation.rows if row.index not in self._running])
            has_had_turn = not (self._has_joined and self._running)
            rows = (
                generation.admit([stream.row for stream in self._waiting], self.token_budget)
                if has_had_turn
                else []
            )
            joining, self._waiting = self._waiting[: len(rows)], self._waiting[len(rows) :]
            self._running |= {stream.row.index: stream for stream in joining}
            self._has_joined = bool(joining)
        for stream in late:
            _deliver(stream, LateError("the answer was not ready in time"))
        return joining

    def _deliver_all(self, chunks: Sequence[Chunk | RowError]) -> None:
        for chunk in chunks:
            has_ended = isinstance(chunk, RowError) or chunk.finish
            with self._lock:
                stream = self._running.pop(chunk.index) if has_ended else self._running[chunk.index]
            if not stream.is_cancelled:
                _deliver(
                    stream,
                    chunk.reason
                    if isinstance(chunk, RowError)
                    else replace(chunk, index=stream.index),
                )

    def _fail(self, generation: Generation, err: Exception) -> None:
        with self._lock:
            streams, self._running = list(self._running.values()), {}
        generation.drop(list(generation.rows))
        for stream in streams:
            _deliver(stream, err)


def _deliver(stream: Stream, result: Chunk | Exception) -> None:
    try:
        stream.deliver(result)
    except RuntimeError as err:  # the replica ends, so the caller's event loop is closed
        log.warning("a generated text has no caller any more: %s", err)
        stream.is_cancelled = True
