"""Responses of OpenAI's completion routes, whole or as server-sent events. Imports no Ray."""

import json
import logging
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from medray.serving.notes import MaskedConversation
from medray.serving.openai_schemas import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    Completion,
    TextChoice,
    Usage,
    chat_logprobs,
    completion_logprobs,
)
from medray.serving.refusals import Refusal, error_body
from medray.serving.service import Event, Events, Service, Start, TextPiece
from medray.types import TokenLogprob

log = logging.getLogger(__name__)
SEAM = "\n\n"  # between an answer and its disclaimer
_CLIENT_LEFT = 499  # nginx's status for a client that disconnected before its response
_INTERNAL_ERROR = 500
_STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
Logprobs = tuple[TokenLogprob, ...]
Fields = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """How one of the two routes builds its bodies: a whole answer, and a piece at an offset."""

    prefix: str
    whole: Callable[[Fields, str, Logprobs, str], BaseModel]
    piece: Callable[[Fields, str, Logprobs, str | None, int], BaseModel]
    opening: Callable[[Fields], BaseModel] | None
    closing: Callable[[Fields], BaseModel]


def _text(
    fields: Fields, text: str, logprobs: Logprobs, finish: str | None, start: int = 0
) -> Completion:
    choice = TextChoice(
        text=text, logprobs=completion_logprobs(logprobs, start), finish_reason=finish
    )
    return Completion(**fields, choices=(choice,))


def _chat(fields: Fields, text: str, logprobs: Logprobs, finish: str) -> ChatCompletion:
    choice = ChatChoice(
        message=AssistantMessage(content=text),
        logprobs=chat_logprobs(logprobs),
        finish_reason=finish,
    )
    return ChatCompletion(**fields, choices=(choice,))


def _chat_piece(
    fields: Fields, text: str, logprobs: Logprobs, finish: str | None, start: int
) -> ChatCompletionChunk:
    delta = ChatDelta(
        delta={"content": text} if text else {},
        logprobs=chat_logprobs(logprobs),
        finish_reason=finish,
    )
    return ChatCompletionChunk(**fields, choices=(delta,))


CHAT = Shape(
    "chatcmpl",
    _chat,
    _chat_piece,
    lambda fields: ChatCompletionChunk(
        **fields, choices=(ChatDelta(delta={"role": "assistant", "content": ""}),)
    ),
    lambda fields: ChatCompletionChunk(**fields, choices=()),
)
TEXT = Shape("cmpl", _text, _text, None, lambda fields: Completion(**fields, choices=()))


@dataclass
class CompletionCall:
    """One request and its answer so far. It is recorded once, however it ends."""

    service: Service
    shape: Shape
    events: Events
    request_id: str
    model: str
    start: float
    with_disclaimer: bool
    include_usage: bool
    substitute: MaskedConversation | None = None  # set if identifiers are masked
    start_of_answer: Start | None = None
    last_piece: TextPiece | None = None
    num_tokens: int = 0
    first_token_s: float | None = None
    is_closed: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    async def answer(self, *, stream: bool) -> Response | Refusal:
        headers = {"x-request-id": self.request_id}
        if stream:
            first = await self.first()
            return (
                first
                if isinstance(first, Refusal)
                else EventStream(self, headers | _STREAM_HEADERS)
            )
        whole = await self.whole()
        return (
            whole
            if isinstance(whole, Refusal)
            else Response(whole.model_dump_json(), media_type="application/json", headers=headers)
        )

    async def first(self) -> Start | Refusal:
        status = _CLIENT_LEFT  # unless set below
        try:
            first = await anext(self.events)
            assert not isinstance(first, TextPiece)
            status = first.status if isinstance(first, Refusal) else 0
        except Exception:
            status = _INTERNAL_ERROR
            raise
        finally:
            if status:
                await self.close(status)
        if isinstance(first, Start):
            self.start_of_answer = first
            self.first_token_s = (
                time.perf_counter() - self.start
                if first.first_token_s is None
                else first.first_token_s
            )
        return first

    async def rest(self) -> AsyncGenerator[TextPiece | Refusal, None]:
        status = _CLIENT_LEFT
        try:
            async for item in self.events:
                assert not isinstance(item, Start)
                if isinstance(item, Refusal):
                    status = item.status
                    yield item
                    return
                self.num_tokens += item.num_tokens
                if item.finish:
                    self.last_piece, status = item, 200
                yield item
            if self.last_piece is None:
                status = _INTERNAL_ERROR
                yield Refusal(
                    _INTERNAL_ERROR, "internal_error", "the answer ended early; try again"
                )
        except Exception as err:  # the status was sent already
            status = _INTERNAL_ERROR
            log.error("%s while an answer was streamed", type(err).__name__)
            yield Refusal(
                _INTERNAL_ERROR,
                "internal_error",
                "the answer ended early; the server's log has the cause",
            )
        finally:
            await self.close(status)

    async def whole(self) -> BaseModel | Refusal:
        first = await self.first()
        if isinstance(first, Refusal):
            return first
        pieces: list[str] = []
        logprobs: Logprobs = ()
        async for item in self.rest():
            if isinstance(item, Refusal):
                return item
            pieces.append(item.text)
            logprobs += item.logprobs
        assert self.last_piece is not None
        assert self.last_piece.finish is not None
        text = "".join(pieces) + self._closing_disclaimer()
        return self.shape.whole(
            self._fields(usage=self._usage(), **self._conclusion()),
            text,
            logprobs,
            self.last_piece.finish,
        )

    async def stream(self) -> AsyncGenerator[str, None]:
        place = 0
        rest = self.rest()
        try:
            if self.shape.opening:
                yield _event(self.shape.opening(self._fields()))
            async for item in rest:
                if isinstance(item, Refusal):
                    yield f"data: {json.dumps(error_body(item))}\n\n"
                    return
                if item.text or item.logprobs:
                    yield _event(
                        self.shape.piece(self._fields(), item.text, item.logprobs, None, place)
                    )
                    place += len(item.text)
            assert self.last_piece is not None
            if self._closing_disclaimer():
                yield _event(
                    self.shape.piece(self._fields(), self._closing_disclaimer(), (), None, place)
                )
            yield _event(
                self.shape.piece(
                    self._fields(**self._conclusion()), "", (), self.last_piece.finish, place
                )
            )
            if self.include_usage:
                yield _event(self.shape.closing(self._fields(usage=self._usage())))
            yield "data: [DONE]\n\n"
        finally:
            await rest.aclose()

    def _closing_disclaimer(self) -> str:
        assert self.start_of_answer is not None
        return (
            SEAM + self.start_of_answer.disclaimer
            if self.with_disclaimer and self.start_of_answer.ends_with_disclaimer
            else ""
        )

    def _fields(self, **others: Any) -> Fields:
        assert self.start_of_answer is not None
        fields = {
            "id": f"{self.shape.prefix}-{self.request_id}",
            "created": self.created,
            "model": self.model,
        }
        return {
            **fields,
            "release": self.start_of_answer.release,
            "version": self.start_of_answer.version,
            **others,
        }

    def _conclusion(self) -> Fields:
        assert self.start_of_answer is not None
        assert self.last_piece is not None
        citations = self.last_piece.citations
        if citations and self.substitute:
            citations = self.substitute.unmask(citations)
        return {
            "outcome": self.last_piece.outcome,
            "disclaimer": self.start_of_answer.disclaimer,
            "masked": self.substitute.counts if self.substitute else None,
            "citations": citations,
            "confidence": self.last_piece.confidence,
            "abstained": None if self.last_piece.confidence is None else self.last_piece.abstained,
        }

    def _usage(self) -> Usage:
        assert self.start_of_answer is not None
        num_read = self.start_of_answer.prompt_tokens
        return Usage(
            prompt_tokens=num_read,
            completion_tokens=self.num_tokens,
            total_tokens=num_read + self.num_tokens,
        )

    async def close(self, status: int) -> None:
        """Record the request with its status, and stop the generation. Later calls do nothing."""
        if self.is_closed:
            return
        self.is_closed = True
        first, last = self.start_of_answer, self.last_piece
        self.service.record(
            Event(
                self.request_id,
                self.model,
                status,
                time.perf_counter() - self.start,
                first.release if first else "",
                first.version if first else 0,
                outcome=last.outcome if last else None,
                prompt_tokens=first.prompt_tokens if first else 0,
                completion_tokens=self.num_tokens,
                first_token_s=self.first_token_s,
            )
        )
        await self.events.aclose()


class EventStream(StreamingResponse):
    media_type = "text/event-stream"

    def __init__(self, call: CompletionCall, headers: dict[str, str]) -> None:
        self.call, self.events = call, call.stream()
        super().__init__(self.events, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream the events. If the client disconnects, even between two of them, stop the
        generation."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.events.aclose()
            await self.call.close(_CLIENT_LEFT)


def _event(body: BaseModel) -> str:
    return f"data: {body.model_dump_json()}\n\n"
