"""The HTTP routes over a `Service`. Every answer and every error is a typed body; no error repeats what was sent. Knows no Ray."""

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medray.errors import allowed
from medray.serving import schemas
from medray.serving.guard import Guard
from medray.serving.schemas import ROUTES, ErrorBody, ErrorDetail, Health, Limits, ModelCard, ModelList, Refused, Route

log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
DISCLAIMER = "medray is research software, not a medical device."


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


class Service(Protocol):
    """What answers behind the routes."""

    @property
    def references(self) -> tuple[str, ...]: ...

    async def answer(self, reference: str, request: schemas.Request) -> schemas.Response | Refused: ...

    async def health(self) -> Health: ...

    def record(self, event: Event) -> None: ...


def make_api(service: Service, limits: Limits, digests: frozenset[str] | None) -> FastAPI:
    version = metadata.version("medray")
    api = FastAPI(title="medray", version=version, description=DISCLAIMER)
    errors: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in (400, 401, 404, 413, 422, 429, 500, 503, 504)}

    @api.get("/", include_in_schema=False)
    async def root() -> dict[str, Any]:
        return {"service": "medray", "version": version, "models": service.references, "docs": "/docs", "notice": DISCLAIMER}

    @api.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=tuple(ModelCard(id=reference) for reference in service.references))

    @api.get("/healthz", response_model_exclude_none=True)
    async def healthz(request: Request) -> Health:
        found = await service.health()
        return found if request.state.known else Health(status=found.status)

    for route in dict.fromkeys(ROUTES.values()):  # tasks may share one
        for number, path in enumerate(route.paths):
            endpoint = _endpoint(service, limits, route)
            api.add_api_route(
                path, endpoint, methods=["POST"], response_model=route.response, responses=errors, include_in_schema=number == 0
            )

    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_middleware(_LastResort)
    api.add_middleware(Guard, body_bytes=limits.body_bytes, digests=digests)
    return api


def _endpoint(service: Service, limits: Limits, route: Route) -> Callable[..., Awaitable[Response]]:
    async def answer(asked: Any, request: Request) -> Response:
        start = time.perf_counter()
        request_id = _request_id(request)
        chosen = _choose(service.references, asked.model)
        if isinstance(chosen, Refused):
            outcome: schemas.Response | Refused = chosen
        elif len(asked.inputs or ()) > limits.inputs:
            outcome = Refused(413, "too_many_inputs", f"at most {limits.inputs} inputs are answered in one request")
        else:
            outcome = await service.answer(chosen, asked)
        model = chosen if isinstance(chosen, str) else ""  # never as it was sent: every value would be a metric of its own
        seconds = time.perf_counter() - start
        if isinstance(outcome, Refused):
            service.record(Event(request_id, model, outcome.status, seconds))
            return _error(outcome, request_id)
        labels = tuple("|".join(found.labels) for found in outcome.predictions)
        service.record(Event(request_id, model, 200, seconds, outcome.release, outcome.version, labels))
        # Already validated: letting FastAPI validate and serialise it once more costs as much as a short text.
        return Response(outcome.model_dump_json(), media_type="application/json", headers={"x-request-id": request_id})

    answer.__annotations__["asked"] = route.request  # which FastAPI reads the body by
    answer.__name__ = route.paths[-1].rpartition("/")[2]
    return answer


def _choose(references: tuple[str, ...], model: str | None) -> str | Refused:
    """The reference that a request means: as it is served, by its name where one fits, or the only one."""
    fitting = [reference for reference in references if model in (None, reference, reference.partition("@")[0])]
    if model in references or len(fitting) == 1:
        return model if model in references and model is not None else fitting[0]
    if not fitting:
        return Refused(404, "unknown_model", f"model {str(model)[:64]!r} is not served here; {allowed(model, references)}")
    return Refused(400, "ambiguous_model", f"several releases fit: name one in `model`; {allowed(model, references)}")


def _request_id(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _error(refused: Refused, request_id: str | None = None) -> JSONResponse:
    headers = {} if refused.retry_after_s is None else {"retry-after": str(refused.retry_after_s)}
    if request_id:
        headers["x-request-id"] = request_id
    body = ErrorBody(error=ErrorDetail(type=refused.type, message=refused.message))
    return JSONResponse(body.model_dump(), status_code=refused.status, headers=headers)


async def _invalid(request: Request, error: Exception) -> Response:
    """What is wrong and where, without what was sent: FastAPI's own answer repeats all of it."""
    assert isinstance(error, RequestValidationError)
    found = []
    for item in error.errors():
        if item["type"] == "json_invalid":
            found.append("the body is not valid JSON")
        else:
            place = ".".join(str(part)[:64] for part in item["loc"] if part != "body")
            found.append(f"{place or 'body'}: {str(item['msg']).removeprefix('Value error, ')}")
    return _error(Refused(422, "invalid_request", "; ".join(found[:5])))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kinds = {404: "not_found", 405: "method_not_allowed"}
    return _error(Refused(error.status_code, kinds.get(error.status_code, "http_error"), str(error.detail)))


class _LastResort:
    """The boundary: whoever asked gets a typed body, the log gets where it happened and no value. Plain ASGI: Starlette's base costs a task a request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as err:
            log.error("%s at %s", type(err).__name__, _innermost(err))
            if has_begun or scope["type"] != "http":
                raise
            answer = _error(Refused(500, "internal_error", "the request could not be answered; the server's log has the cause"))
            await answer(scope, receive, send)


def _innermost(err: BaseException) -> str:
    trace = err.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "an unknown place"
