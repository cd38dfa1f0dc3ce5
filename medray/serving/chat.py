"""A release that talks: from a conversation to a stream of rows, and from its pieces to what is said. Knows neither Ray nor HTTP."""

import copy
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from medray.data.base import Message
from medray.errors import ConfigError, ServingError
from medray.facts import DISCLAIMER
from medray.generation import Chunk, Sampling, joined
from medray.serving.batching import LateError
from medray.serving.schemas import Limits
from medray.serving.streams import Deliver
from medray.serving.talk import Asked, Begun, Described, Said
from medray.tasks.base import Chatting


class TooLongError(ServingError):
    """What is asked for does not fit the model or the limits."""


class Speaker(Protocol):
    """Texts of many requests at a time: `Streams`, which steps them itself, or `Relay` to an engine that does."""

    @property
    def num_running(self) -> int: ...

    @property
    def num_waiting(self) -> int: ...

    def start(self, prompt: Sequence[int], sampling: Sampling, deliver: Deliver, deadline: float) -> Any: ...

    def cancel(self, stream: Any) -> None:
        """With what `start` gave."""
        ...


@dataclass(frozen=True)
class Chat:
    """One version of a release. A text holds on to the one it began with."""

    release: str
    version: int
    task: Chatting
    tokenizer: Any
    streams: Speaker
    precision: str
    window: int  # places that the model has for tokens
    _reading: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, release: str, version: int, task: Chatting, tokenizer: Any, streams: Speaker, precision: str, window: int) -> "Chat":
        # One tokenizer reads a template's marks as marks and what people say as text, by a switch of its own: two threads at it would
        # let a user's "<|im_end|>" end the turn. And the thread that computes spells tokens with the engine's meanwhile.
        return cls(release, version, task, copy.deepcopy(tokenizer), streams, precision, window)

    def begin(self, asked: Asked, limits: Limits, deadline: float, deliver: Deliver) -> tuple[Begun, Any]:
        options = self.task.options
        most = asked.max_tokens or min(options.max_new_tokens, limits.new_tokens)
        if most > limits.new_tokens:
            raise TooLongError(f"max_tokens {most}: at most {limits.new_tokens} tokens are generated")
        try:
            with self._reading:
                if time.monotonic() >= deadline:  # others were read first for so long
                    raise LateError("the answer was not ready in time")
                prompt = self.task.prompt(without_disclaimer(asked.messages), self.tokenizer, most)
        except ConfigError as err:
            raise TooLongError(str(err)) from None
        longest = min(limits.tokens, self.window)
        if len(prompt) + most > longest:
            raise TooLongError(f"{len(prompt)} tokens and {most} to be generated: at most {longest} are read and written")
        stream = self.streams.start(prompt, replace(asked.sampling, max_tokens=most), deliver, deadline)
        return Begun(self.release, self.version, len(prompt), DISCLAIMER, options.disclaimer), stream

    def describe(self) -> Described:
        return Described(self.release, self.version, self.task.options.system, DISCLAIMER)


class Telling:
    """An answer while it is told: its last piece says what the whole was."""

    def __init__(self, task: Chatting) -> None:
        self.task = task
        self._text = ""

    def say(self, chunks: Sequence[Chunk]) -> Said:
        piece = joined(0, chunks)
        self._text += piece.text
        outcome = self.task.outcome(self._text) if piece.finish else None
        return Said(piece.text, piece.num_tokens, piece.logprobs, piece.finish, outcome)


def without_disclaimer(messages: Sequence[Message]) -> list[Message]:
    """A client sends back what it was told, the disclaimer at its end included, which the model never said."""
    return [
        replace(message, content=message.content.removesuffix(DISCLAIMER).rstrip()) if message.role == "assistant" else message
        for message in messages
    ]
