"""What answers behind the routes, and what is kept of a request."""

import re
import uuid
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol

from fastapi.responses import JSONResponse

from medray.errors import allowed
from medray.serving.cards import ReleaseCard
from medray.serving.schemas import Asked, Begun, Described, ErrorBody, ErrorDetail, Health, Refused, Said
from medray.tasks.base.protocol import Outcome
from medray.tasks.base.route import TextRequest, TextResponse

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

    async def answer(self, reference: str, request: TextRequest) -> TextResponse | Refused: ...

    def talk(self, reference: str, asked: Asked) -> Events:
        """Closing it ends the generation."""
        ...

    async def describe(self, reference: str) -> Described | Refused: ...

    async def card(self, reference: str) -> ReleaseCard | Refused: ...

    async def health(self) -> Health: ...

    def record(self, event: Event) -> None: ...


_LONGEST = 200  # of a name that is compared with ours
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def choose(references: tuple[str, ...], model: str | None) -> str | Refused:
    """The reference that a request means: as it is served, by its name where one fits, or the only one."""
    fitting = [reference for reference in references if model in (None, reference, reference.partition("@")[0])]
    if model in references or len(fitting) == 1:
        return model if model in references and model is not None else fitting[0]
    if not fitting:
        message = f"model: is not served here; {allowed(str(model)[:_LONGEST], references)}"
        return Refused(404, "unknown_model", message, param="model", code="model_not_found")
    message = f"several releases fit: name one in `model`; {allowed(model, references)}"
    return Refused(400, "ambiguous_model", message, param="model")


def request_id(headers: Mapping[str, str]) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def body(refused: Refused) -> ErrorBody:
    detail = ErrorDetail(message=refused.message, type=refused.type, param=refused.param, code=refused.code or refused.type)
    return ErrorBody(error=detail)


def error(refused: Refused, number: str | None = None) -> JSONResponse:
    headers = {} if refused.retry_after_s is None else {"retry-after": str(refused.retry_after_s)}
    if number:
        headers["x-request-id"] = number
    return JSONResponse(body(refused).model_dump(), status_code=refused.status, headers=headers)
