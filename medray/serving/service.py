"""What the routes and a service that answers behind them exchange: conversations, pieces of
answers, and what is kept of a request."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from medray.serving.auth import Refusal
from medray.serving.cards import ReleaseCard
from medray.serving.schemas import Health
from medray.tasks.base.protocol import ChatOutcome
from medray.tasks.base.route import TextRequest, TextResponse
from medray.types import Message, Sampling, TokenLogprob


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation to go on with."""

    messages: tuple[Message, ...]
    sampling: Sampling
    max_tokens: int | None  # the task's own number where nobody said
    whole: bool  # the answer in one piece: pieces that nobody looks at cost a message each


@dataclass(frozen=True, slots=True)
class Start:
    """Who answers: before the first piece, also of an answer in one piece, which so can be asked
    for again until it is there."""

    release: str
    version: int
    prompt_tokens: int
    disclaimer: str
    ends_with_disclaimer: bool = True
    first_token_s: float | None = None  # from the replica's being asked


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A piece of the answer; on the last one, why it ended and what it was."""

    text: str
    num_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str | None = None
    outcome: ChatOutcome | None = None


@dataclass(frozen=True, slots=True)
class Description:
    """What somebody who talks to a release should know of it."""

    release: str
    version: int
    system: str | None = None  # None: it does not talk
    disclaimer: str | None = None


Events = AsyncGenerator[
    Start | TextPiece | Refusal, None
]  # first one of Start and Refusal; a refusal is the last


@dataclass(frozen=True)
class Event:
    """What is kept of a request: never its text."""

    request_id: str
    model: str
    status: int
    seconds: float
    release: str = ""
    version: int = 0
    labels: tuple[str, ...] = ()
    confidences: tuple[float, ...] = ()
    outcome: ChatOutcome | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float | None = None


class Service(Protocol):
    @property
    def references(self) -> tuple[str, ...]: ...

    async def answer(self, reference: str, request: TextRequest) -> TextResponse | Refusal: ...

    def talk(self, reference: str, conversation: Conversation) -> Events:
        """Closing it ends the generation."""
        ...

    async def describe(self, reference: str) -> Description | Refusal: ...

    async def card(self, reference: str) -> ReleaseCard | Refusal: ...

    async def health(self) -> Health: ...

    def record(self, event: Event) -> None: ...
