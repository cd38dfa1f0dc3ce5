"""A release that talks: it turns a conversation into a prompt, and generated chunks into pieces of
an answer. Imports neither Ray nor HTTP."""

import asyncio
import copy
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

from medray.client.answers import Citations
from medray.engines.vllm.engine import VllmEngine
from medray.errors import ConfigError, ServingError
from medray.evaluation.calibration import calibrate
from medray.records import AS_IT_IS, CalibrationRecord
from medray.registry.loading import LoadedRelease
from medray.serving.schemas import Limits
from medray.serving.service import Conversation, Description, Start, TextPiece
from medray.serving.streams import Deliver, LateError, OverloadedError, TooManyTokensError
from medray.serving.text_model import Batcher
from medray.tasks.base.citations import evidence_of, of_reply
from medray.tasks.base.protocol import Chatting
from medray.text.sentences import Sentences
from medray.types import (
    DISCLAIMER,
    Chunk,
    Floats32,
    Message,
    Prediction,
    Sampling,
    TokenIds,
    TokenLogprob,
    join_chunks,
)

# Texts that citations read besides those without one sentence: the whole one twice, the cited
# sentences alone, and the text without them.
_OTHER_TEXTS = 4


class TooLongError(ServingError):
    """The conversation does not fit the model or the limits."""


class TextStreams(Protocol):
    """Generates the texts of many requests at a time. `Streams` steps them itself, and `Relay`
    passes them to an engine that does."""

    @property
    def num_running(self) -> int: ...

    @property
    def num_waiting(self) -> int: ...

    def start(
        self, prompt: Sequence[int], sampling: Sampling, deliver: Deliver, deadline: float
    ) -> Any: ...

    def cancel(self, stream: Any) -> None:
        """Stop a stream that `start` returned."""
        ...


@dataclass(frozen=True)
class ChatModel:
    """A loaded release that talks. An answer keeps the release it began with."""

    release: LoadedRelease
    tokenizer: Any
    streams: TextStreams
    window: int  # the most tokens that the model can read and write
    # It scores answers for citations; None: the engine batches by itself.
    batcher: Batcher | None = None
    _reading: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(
        cls,
        release: LoadedRelease,
        streams: TextStreams,
        window: int,
        batcher: Batcher | None = None,
    ) -> "ChatModel":
        assert isinstance(release.task, Chatting), "the caller checks that the task talks"
        # A tokenizer has a switch that reads "<|im_end|>" as a mark or as text. Two threads on one
        # tokenizer could end a turn with a user's text. The engine decodes with its own meanwhile.
        return cls(release, copy.deepcopy(release.engine.tokenizer), streams, window, batcher)

    @property
    def task(self) -> Chatting:
        return cast(Chatting, self.release.task)  # checked by `open`

    def begin(
        self, conversation: Conversation, limits: Limits, deadline: float, deliver: Deliver
    ) -> tuple[Start, Any]:
        options = self.task.options
        most = conversation.max_tokens or min(options.max_new_tokens, limits.new_tokens)
        if most > limits.new_tokens:
            raise TooLongError(
                f"max_tokens: {most} is over the limit; give at most {limits.new_tokens}"
            )
        try:
            with self._reading:
                if time.monotonic() >= deadline:  # other conversations took the lock first
                    raise LateError("the answer was not ready in time")
                prompt = self.task.prompt(
                    without_disclaimer(conversation.messages), self.tokenizer, most
                )
        except ConfigError as err:
            raise TooLongError(str(err)) from None
        longest = min(limits.tokens, self.window)
        if len(prompt) + most > longest:
            raise TooLongError(
                f"messages: {len(prompt)} tokens and {most} to generate are more than {longest}; "
                "shorten the messages, or give a lower max_tokens"
            )
        if conversation.citations:
            sentences = Sentences.of(conversation.messages[-1].content)
            num_texts = len(evidence_of(sentences, limits.sentences)) + _OTHER_TEXTS
            if (tokens := num_texts * (len(prompt) + most)) > limits.tokens:
                raise TooManyTokensError(
                    f"citations: without each sentence in turn, the request has {tokens} tokens; "
                    f"at most {limits.tokens} are allowed"
                )
        stream = self.streams.start(
            prompt, self._sampling(conversation.sampling, most), deliver, deadline
        )
        return Start(
            self.release.name, self.release.version, len(prompt), DISCLAIMER, options.disclaimer
        ), stream

    def _sampling(self, sampling: Sampling, most: int) -> Sampling:
        """Return the sampling, with the log-probabilities that a confidence needs."""
        needs_logprobs = sampling.logprobs is None and self.release.calibration.texts
        return replace(
            sampling, max_tokens=most, logprobs=0 if needs_logprobs else sampling.logprobs
        )

    def builder(self, conversation: Conversation) -> "AnswerBuilder":
        with_logprobs = conversation.sampling.logprobs is not None
        return AnswerBuilder(self.task, self.release.calibration, with_logprobs=with_logprobs)

    def cite(self, conversation: Conversation, text: str, deadline: float) -> Citations:
        """Return the sentences of the last message on which the answer `text` rests."""
        most, engine = self.task.options.max_new_tokens, self.release.engine

        def prompt(messages: Sequence[Message]) -> TokenIds:
            with self._reading:
                return self.task.prompt(messages, self.tokenizer, most)

        def score(prompts: Sequence[TokenIds], answers: Sequence[TokenIds]) -> Floats32:
            if self.batcher is None:
                return engine.score(prompts, answers)
            return self.batcher.score(prompts, tuple(answers), deadline)

        with self._reading:
            answer = self.task.answer(text, self.tokenizer)
        messages = without_disclaimer(conversation.messages)
        return of_reply(messages, answer, prompt, score).cite()[0]

    def describe(self) -> Description:
        return Description(
            self.release.name, self.release.version, self.task.options.system, DISCLAIMER
        )


class AnswerBuilder:
    """Collects a generated answer. Its last piece has the outcome of the whole."""

    def __init__(
        self,
        task: Chatting,
        calibration: CalibrationRecord = AS_IT_IS,
        *,
        with_logprobs: bool = True,
    ) -> None:
        self.task, self.calibration, self.with_logprobs = task, calibration, with_logprobs
        self.text = ""
        self._logprobs: list[TokenLogprob] = []

    def add(self, chunks: Sequence[Chunk]) -> TextPiece:
        piece = join_chunks(0, chunks)
        self.text += piece.text
        self._logprobs += piece.logprobs
        visible = piece.logprobs if self.with_logprobs else ()
        if not piece.finish:
            return TextPiece(piece.text, piece.num_tokens, visible)
        outcome = self.task.outcome(self.text)
        last = TextPiece(piece.text, piece.num_tokens, visible, piece.finish, outcome)
        if not self.calibration.texts:
            return last
        figures = self.task.features(self.text, self._logprobs)
        answer = Prediction("", (), (), text=self.text, figures=figures)
        (answer,) = calibrate(self.task, self.calibration, [answer])
        return replace(last, confidence=answer.confidence, abstained=answer.abstained)


def without_disclaimer(messages: Sequence[Message]) -> list[Message]:
    """Return the messages without the disclaimer at the end of earlier answers, which clients send
    back though the model never wrote it."""
    return [
        replace(message, content=message.content.removesuffix(DISCLAIMER).rstrip())
        if message.role == "assistant"
        else message
        for message in messages
    ]


class RelayStream:
    """A text that is generated."""

    def __init__(self, tokens: int, deliver: Deliver) -> None:
        self.tokens, self.deliver = tokens, deliver  # tokens that wait for its first piece
        self.future: Future[None] | None = None


class Relay:
    def __init__(self, engine: VllmEngine, *, waiting_tokens: int) -> None:
        self.engine, self.waiting_tokens = engine, waiting_tokens
        self._lock = threading.Lock()
        self._tokens = self._waiting = self._running = 0

    def start(
        self, prompt: Sequence[int], sampling: Sampling, deliver: Deliver, deadline: float
    ) -> RelayStream:
        """Start a text and pass its chunks to `deliver`, until `time.monotonic() == deadline`."""
        stream = RelayStream(len(prompt) + sampling.max_tokens, deliver)
        with self._lock:
            tokens = self._tokens + stream.tokens
            if tokens > self.waiting_tokens:
                raise OverloadedError(
                    f"{tokens} tokens would wait; at most {self.waiting_tokens} may"
                )
            self._tokens = tokens
            self._waiting += 1
        stream.future = self.engine.core.submit(self._run(stream, prompt, sampling, deadline))
        stream.future.add_done_callback(
            lambda _: self._end(stream)
        )  # a stream that is cancelled at once never runs `_run`
        return stream

    def cancel(self, stream: RelayStream) -> None:
        """Stop the text and release its row at the next step."""
        if stream.future:
            stream.future.cancel()

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
        except Exception as err:  # passed on to the request that waits
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
