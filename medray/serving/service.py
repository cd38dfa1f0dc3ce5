"""The protocols between the routes, a service and its releases: questions, conversations, pieces of
answers, and events for the audit log."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from medray.client.answers import Citations
from medray.serving.cards import ReleaseCard
from medray.serving.refusals import Refusal
from medray.serving.schemas import Health, ReleaseHealth
from medray.tasks.base.protocol import ChatOutcome
from medray.tasks.base.route import (
    ExplainRequest,
    ExplainResponse,
    InputNote,
    TextRequest,
    TextResponse,
)
from medray.types import Message, Question, QuestionAnswer, Sampling, TokenLogprob


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation that the release continues."""

    messages: tuple[Message, ...]
    sampling: Sampling
    max_tokens: int | None  # None: the task's own number
    whole: bool  # send the answer in one piece, since each piece costs a message
    citations: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """The release that answers. It precedes the first piece, even of a whole answer; until it
    arrives a request can be repeated."""

    release: str
    version: int
    prompt_tokens: int
    disclaimer: str
    ends_with_disclaimer: bool = True
    first_token_s: float | None = None  # counted by the replica


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A piece of the answer. The last one has the reason why it ended, and its outcome."""

    text: str
    num_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str | None = None
    outcome: ChatOutcome | None = None
    citations: Citations | None = None
    confidence: float | None = None  # None for a refusal, or without a calibration
    abstained: bool = False


@dataclass(frozen=True, slots=True)
class Description:
    """The release, its system prompt and its disclaimer."""

    release: str
    version: int
    system: str | None = None  # None if it does not talk
    disclaimer: str | None = None


@dataclass(frozen=True, slots=True)
class Inquiry:
    """A text and the questions about it."""

    text: str
    questions: tuple[Question, ...]
    citations: bool = False


@dataclass(frozen=True, slots=True)
class InquiryReply:
    """The answers of a release, one per question."""

    release: str
    version: int
    answers: tuple[QuestionAnswer, ...]
    input_tokens: int
    output_tokens: int = 0
    labels: tuple[str, ...] = ()  # of the release's predictions, as its metrics count them
    confidences: tuple[float, ...] = ()
    notes: tuple[InputNote, ...] = ()  # one for the text, if a guard has something to note
    citations: tuple[Citations, ...] = ()  # one per answer, if requested


# The first event is a Start or a Refusal, and a Refusal is always the last.
Events = AsyncGenerator[Start | TextPiece | Refusal, None]


@dataclass(frozen=True)
class Event:
    """What is recorded of a request, which never includes its text."""

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
    is_explanation: bool = False


class ReleaseService(Protocol):
    """What answers for one release per call."""

    async def answer(self, reference: str, request: TextRequest) -> TextResponse | Refusal: ...

    async def decide(self, reference: str, inquiry: Inquiry) -> InquiryReply | Refusal: ...

    async def explain(
        self, reference: str, request: ExplainRequest
    ) -> ExplainResponse | Refusal: ...

    def talk(self, reference: str, conversation: Conversation) -> Events:
        """Yield the pieces of an answer. Closing the generator stops the generation."""
        ...

    async def describe(self, reference: str) -> Description | Refusal: ...

    async def card(self, reference: str) -> ReleaseCard | Refusal: ...


class Calls(ReleaseService, Protocol):
    """Where the calls of an ingress go: to the deployments of releases, or to the release in its
    own process."""

    async def release_health(self, reference: str) -> ReleaseHealth: ...


class Service(ReleaseService, Protocol):
    """What the routes need."""

    @property
    def references(self) -> tuple[str, ...]: ...

    async def health(self) -> Health: ...

    def record(self, event: Event) -> None: ...
