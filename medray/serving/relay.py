"""Texts of many requests from an engine that batches them itself. Knows no task and no Ray."""

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import aclosing

from medray.engines.vllm import VllmEngine
from medray.generation import Sampling
from medray.serving.batching import LateError, OverloadedError
from medray.serving.streams import Deliver


class Relayed:
    """One text under way."""

    def __init__(self, tokens: int, deliver: Deliver) -> None:
        self.tokens, self.deliver = tokens, deliver  # tokens: that it makes wait until its first piece
        self.done: Future[None] | None = None


class Relay:
    def __init__(self, engine: VllmEngine, *, waiting_tokens: int) -> None:
        self.engine, self.waiting_tokens = engine, waiting_tokens
        self._lock = threading.Lock()
        self._tokens = self._waiting = self._running = 0

    def start(self, prompt: Sequence[int], sampling: Sampling, deliver: Deliver, deadline: float) -> Relayed:
        """Its text comes to `deliver`, until `time.monotonic() == deadline`."""
        stream = Relayed(len(prompt) + sampling.max_tokens, deliver)
        with self._lock:
            tokens = self._tokens + stream.tokens
            if tokens > self.waiting_tokens:
                raise OverloadedError(f"{tokens} tokens would wait, at most {self.waiting_tokens} may")
            self._tokens = tokens
            self._waiting += 1
        stream.done = self.engine.core.submit(self._run(stream, prompt, sampling, deadline))
        stream.done.add_done_callback(lambda done: self._ended(stream))  # not in `_run`: cancelled at once, it never runs
        return stream

    def cancel(self, stream: Relayed) -> None:
        """Its row is free at the next step."""
        if stream.done:
            stream.done.cancel()

    @property
    def num_running(self) -> int:
        return self._running

    @property
    def num_waiting(self) -> int:
        return self._waiting

    async def _run(self, stream: Relayed, prompt: Sequence[int], sampling: Sampling, deadline: float) -> None:
        try:
            async with asyncio.timeout(deadline - time.monotonic()), aclosing(self.engine.stream(prompt, sampling)) as chunks:
                async for chunk in chunks:
                    self._begun(stream)
                    stream.deliver(chunk)
        except TimeoutError:
            stream.deliver(LateError("the answer was not ready in time"))
        except Exception as err:  # whatever it is, who waits must hear of it
            stream.deliver(err)

    def _begun(self, stream: Relayed) -> None:
        with self._lock:
            if stream.tokens:
                self._tokens -= stream.tokens
                stream.tokens = 0
                self._waiting -= 1
                self._running += 1

    def _ended(self, stream: Relayed) -> None:
        self._begun(stream)
        with self._lock:
            self._running -= 1
