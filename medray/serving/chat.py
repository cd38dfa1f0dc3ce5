"""A release that talks: from a conversation to a stream of rows, and from its pieces to what is
said. Knows neither Ray nor HTTP."""

import asyncio
import copy
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

from medray.engines.vllm.engine import VllmEngine
from medray.errors import ConfigError, ServingError
from medray.registry.loading import LoadedRelease
from medray.serving.schemas import Limits
from medray.serving.service import Conversation, Description, Start, TextPiece
from medray.serving.streams import Deliver, LateError, OverloadedError
from medray.tasks.base.protocol import Chatting
from medray.types import DISCLAIMER, Chunk, Message, Sampling, join_chunks


class TooLongError(ServingError):
    """What is asked for does not fit the model or the limits."""


class Speaker(Protocol):
    """Texts of many requests at a time: `Streams`, which steps them itself, or `Relay` to an engine
    that does."""

    @property
    def num_running(self) -> int: ...

    @property
    def num_waiting(self) -> int: ...

    def start(
        self, prompt: Sequence[int], sampling: Sampling, deliver: Deliver, deadline: float
    ) -> Any: ...

    def cancel(self, stream: Any) -> None:
        """End a stream that `start` returned."""
        ...


@dataclass(frozen=True)
class Chat:
    """A loaded release that talks. A text keeps the one it began with."""

    loaded: LoadedRelease
    tokenizer: Any
    streams: Speaker
    window: int  # places that the model has for tokens
    _reading: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, loaded: LoadedRelease, streams: Speaker, window: int) -> "Chat":
        assert isinstance(loaded.task, Chatting), "what does not talk is refused before"
        # One tokenizer reads a template's marks as marks and what people say as text, by a switch
        # of its own: two threads at it would let a user's "<|im_end|>" end the turn. And the thread
        # that computes spells tokens with the engine's meanwhile.
        return cls(loaded, copy.deepcopy(loaded.engine.tokenizer), streams, window)

    @property
    def task(self) -> Chatting:
        return cast(Chatting, self.loaded.task)  # as `open` has checked

    def begin(
        self, conversation: Conversation, limits: Limits, deadline: float, deliver: Deliver
    ) -> tuple[Start, Any]:
        options = self.task.options
        most = conversation.max_tokens or min(options.max_new_tokens, limits.new_tokens)
        if most > limits.new_tokens:
            raise TooLongError(
                f"max_tokens {most}: at most {limits.new_tokens} tokens are generated"
            )
        try:
            with self._reading:
                if time.monotonic() >= deadline:  # others were read first for so long
                    raise LateError("the answer was not ready in time")
                prompt = self.task.prompt(
                    without_disclaimer(conversation.messages), self.tokenizer, most
                )
        except ConfigError as err:
            raise TooLongError(str(err)) from None
        longest = min(limits.tokens, self.window)
        if len(prompt) + most > longest:
            raise TooLongError(
                f"{len(prompt)} tokens and {most} to be generated: at most {longest} are read and "
                "written"
            )
        stream = self.streams.start(
            prompt, replace(conversation.sampling, max_tokens=most), deliver, deadline
        )
        return Start(
            self.loaded.name, self.loaded.version, len(prompt), DISCLAIMER, options.disclaimer
        ), stream

    def describe(self) -> Description:
        return Description(
            self.loaded.name, self.loaded.version, self.task.options.system, DISCLAIMER
        )


class Telling:
    """An answer while it is generated; its last piece has the outcome of the whole."""

    def __init__(self, task: Chatting) -> None:
        self.task = task
        self._text = ""

    def say(self, chunks: Sequence[Chunk]) -> TextPiece:
        piece = join_chunks(0, chunks)
        self._text += piece.text
        outcome = self.task.outcome(self._text) if piece.finish else None
        return TextPiece(piece.text, piece.num_tokens, piece.logprobs, piece.finish, outcome)


def without_disclaimer(messages: Sequence[Message]) -> list[Message]:
    """A client sends back what it was told, the disclaimer at its end included, which the model
    never said."""
    return [
        replace(message, content=message.content.removesuffix(DISCLAIMER).rstrip())
        if message.role == "assistant"
        else message
        for message in messages
    ]


class RelayStream:
    """One text under way."""

    def __init__(self, tokens: int, deliver: Deliver) -> None:
        self.tokens, self.deliver = (
            tokens,
            deliver,
        )  # tokens: that it makes wait until its first piece
        self.done: Future[None] | None = None


class Relay:
    def __init__(self, engine: VllmEngine, *, waiting_tokens: int) -> None:
        self.engine, self.waiting_tokens = engine, waiting_tokens
        self._lock = threading.Lock()
        self._tokens = self._waiting = self._running = 0

    def start(
        self, prompt: Sequence[int], sampling: Sampling, deliver: Deliver, deadline: float
    ) -> RelayStream:
        """Pass its chunks to `deliver`, until `time.monotonic() == deadline`."""
        stream = RelayStream(len(prompt) + sampling.max_tokens, deliver)
        with self._lock:
            tokens = self._tokens + stream.tokens
            if tokens > self.waiting_tokens:
                raise OverloadedError(
                    f"{tokens} tokens would wait, at most {self.waiting_tokens} may"
                )
            self._tokens = tokens
            self._waiting += 1
        stream.done = self.engine.core.submit(self._run(stream, prompt, sampling, deadline))
        stream.done.add_done_callback(
            lambda done: self._end(stream)
        )  # not in `_run`: cancelled at once, it never runs
        return stream

    def cancel(self, stream: RelayStream) -> None:
        """Release its row at the next step."""
        if stream.done:
            stream.done.cancel()

    @property
    def num_running(self) -> int:
        return self._running

    @property
    def num_waiting(self) -> int:
        return self._waiting

    async def _run(
        self, stream: RelayStream, prompt: Sequence[int], sampling: Sampling, deadline: float
    ) -> None:
        try:
            async with (
                asyncio.timeout(deadline - time.monotonic()),
                aclosing(self.engine.stream(prompt, sampling)) as chunks,
            ):
                async for chunk in chunks:
                    self._leave_queue(stream)
                    stream.deliver(chunk)
        except TimeoutError:
            stream.deliver(LateError("the answer was not ready in time"))
        except Exception as err:  # whatever it is, the request that waits gets it
            stream.deliver(err)

    def _leave_queue(self, stream: RelayStream) -> None:
        with self._lock:
            if stream.tokens:
                self._tokens -= stream.tokens
                stream.tokens = 0
                self._waiting -= 1
                self._running += 1

    def _end(self, stream: RelayStream) -> None:
        self._leave_queue(stream)
        with self._lock:
            self._running -= 1
