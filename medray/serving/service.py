"""What answers behind the routes, and what is kept of a request."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from medray.serving.cards import ReleaseCard
from medray.serving.schemas import Health, Refused, Request, Response
from medray.serving.talk import Asked, Begun, Described, Said
from medray.tasks.base import Outcome

Events = AsyncGenerator[Begun | Said | Refused, None]  # first one of Begun and Refused; a refusal is the last


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
    outcome: Outcome | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float | None = None


class Service(Protocol):
    @property
    def references(self) -> tuple[str, ...]: ...

    async def answer(self, reference: str, request: Request) -> Response | Refused: ...

    def talk(self, reference: str, asked: Asked) -> Events:
        """Closing it ends the generation."""
        ...

    async def describe(self, reference: str) -> Described | Refused: ...

    async def card(self, reference: str) -> ReleaseCard | Refused: ...

    async def health(self) -> Health: ...

    def record(self, event: Event) -> None: ...
