"""The HTTP routes over a `Service`. Every answer and every error is a typed body; no error repeats
what was sent. Knows no Ray."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from importlib import metadata
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medray.errors import suggest
from medray.serving import notes, openai_answers
from medray.serving.auth import Guard, Refusal, error_body
from medray.serving.cards import ReleaseCard, ReleaseList, ServedCard, Unavailable
from medray.serving.openai_answers import Call, Shape
from medray.serving.openai_schemas import ChatCompletion, ChatRequest, Completion, CompletionRequest
from medray.serving.page import page, reference
from medray.serving.schemas import (
    CHAT_PATH,
    COMPLETION_PATH,
    ErrorBody,
    Health,
    Limits,
    ModelCard,
    ModelDetail,
    ModelList,
)
from medray.serving.service import Event, Service
from medray.tasks.base.route import Route, TextResponse, all_routes

log = logging.getLogger(__name__)
_LONGEST = 200  # of a name that is compared with ours
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PARAMETER = re.compile(r"[a-z][a-z0-9_]{0,39}")
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody}
    for status in (400, 401, 404, 408, 413, 421, 422, 429, 431, 500, 503, 504)
}
_NOTICE = "medray is research software, not a medical device."


def make_api(
    service: Service,
    limits: Limits,
    digests: frozenset[str] | None,
    *,
    hosts: tuple[str, ...] | None = None,
    disclaimer_in_content: bool = True,
    mask_identifiers: bool = False,
) -> FastAPI:
    api = FastAPI(
        title="medray",
        version=metadata.version("medray"),
        description=_NOTICE,
        docs_url=None,
        redoc_url=None,
    )
    _add_pages(api, service)
    _add_information(api, service)
    for route in all_routes():
        endpoint = _endpoint(service, limits, route, mask_identifiers)
        api.add_api_route(
            route.path, endpoint, methods=["POST"], response_model=route.response, responses=_ERRORS
        )
    _add_chats(
        api,
        service,
        limits,
        with_disclaimer=disclaimer_in_content,
        mask_identifiers=mask_identifiers,
    )
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_middleware(_LastResort)
    api.add_middleware(Guard, body_bytes=limits.body_bytes, digests=digests, hosts=hosts)
    return api


def _add_pages(api: FastAPI, service: Service) -> None:
    """The pages for people; programs get JSON at the root."""

    @api.head("/", include_in_schema=False)
    @api.get("/", include_in_schema=False)
    async def root(request: Request) -> Response:
        if page.is_wanted(request.headers):
            return Response(page.html(), media_type="text/html", headers=page.headers())
        about = {
            "service": "medray",
            "version": api.version,
            "models": service.references,
            "docs": "/docs",
            "notice": _NOTICE,
        }
        return JSONResponse(about, headers={"vary": "accept"})

    @api.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(
            reference.html(api.openapi()), media_type="text/html", headers=page.headers()
        )


def _add_information(api: FastAPI, service: Service) -> None:
    start = int(time.time())

    @api.get("/v1/releases", responses={401: {"model": ErrorBody}})
    async def releases() -> ReleaseList:
        cards = await asyncio.gather(*map(service.card, service.references))
        entries = list(zip(service.references, cards, strict=True))
        return ReleaseList(
            data=tuple(
                ServedCard(id=name, **dict(card))
                for name, card in entries
                if isinstance(card, ReleaseCard)
            ),
            unavailable=tuple(
                Unavailable(id=name, message=card.message)
                for name, card in entries
                if isinstance(card, Refusal)
            ),
        )

    @api.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(
            data=tuple(ModelCard(id=reference, created=start) for reference in service.references)
        )

    @api.get("/v1/models/{model}", responses=_ERRORS, response_model=ModelDetail)
    async def model(model: str, request: Request) -> Response:
        chosen = choose(service.references, model)
        about = chosen if isinstance(chosen, Refusal) else await service.describe(chosen)
        if isinstance(about, Refusal):
            return error(about, request_id(request.headers))
        detail = ModelDetail(id=str(chosen), created=start, **asdict(about))
        return Response(detail.model_dump_json(), media_type="application/json")

    @api.head("/healthz", include_in_schema=False)  # some load balancers send it
    @api.get("/healthz", response_model_exclude_none=True)
    async def healthz(request: Request) -> Health:
        health = await service.health()
        return health if request.state.known else Health(status=health.status)


def _add_chats(
    api: FastAPI, service: Service, limits: Limits, *, with_disclaimer: bool, mask_identifiers: bool
) -> None:
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        if len(body.messages) > limits.messages:
            number = request_id(request.headers)
            service.record(Event(number, "", 400, 0.0))
            message = f"messages: at most {limits.messages} are read; leave out the oldest"
            return error(Refusal(400, "invalid_request", message, param="messages"), number)
        return await talk(openai_answers.CHAT, body, request)

    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await talk(openai_answers.TEXT, body, request)

    async def talk(
        shape: Shape, body: ChatRequest | CompletionRequest, request: Request
    ) -> Response:
        number, start = request_id(request.headers), time.perf_counter()
        chosen = choose(service.references, body.model)
        if isinstance(chosen, Refusal):
            service.record(Event(number, "", chosen.status, time.perf_counter() - start))
            return error(chosen, number)
        conversation, masked = (
            await notes.mask_conversation(body.conversation())
            if mask_identifiers
            else (body.conversation(), None)
        )
        call = Call(
            service,
            shape,
            service.talk(chosen, conversation),
            number,
            chosen,
            start,
            with_disclaimer,
            body.include_usage,
            masked,
        )
        outcome = await call.answer(stream=bool(body.stream))
        return error(outcome, number) if isinstance(outcome, Refusal) else outcome

    pieces = {
        "content": {"text/event-stream": {}},
        "description": "the answer; in pieces where `stream` is true",
    }
    responses = _ERRORS | {200: pieces}
    api.add_api_route(
        CHAT_PATH,
        chat_completions,
        methods=["POST"],
        response_model=ChatCompletion,
        responses=responses,
    )
    api.add_api_route(
        COMPLETION_PATH,
        completions,
        methods=["POST"],
        response_model=Completion,
        responses=responses,
    )


def _endpoint(
    service: Service, limits: Limits, route: Route, mask_identifiers: bool
) -> Callable[..., Awaitable[Response]]:
    async def answer(body: Any, request: Request) -> Response:
        start = time.perf_counter()
        number = request_id(request.headers)
        chosen = choose(service.references, body.model)
        if isinstance(chosen, Refusal):
            outcome: TextResponse | Refusal = chosen
        elif len(body.inputs or ()) > limits.inputs:
            outcome = Refusal(
                413,
                "too_many_inputs",
                f"at most {limits.inputs} inputs are answered in one request",
            )
        else:
            masked = await notes.mask(body) if mask_identifiers else None
            outcome = await service.answer(chosen, masked.request if masked else body)
            if masked and not isinstance(outcome, Refusal):
                outcome = masked.annotate(outcome)
        model = (
            chosen if isinstance(chosen, str) else ""
        )  # never as it was sent: every value would be a metric of its own
        seconds = time.perf_counter() - start
        if isinstance(outcome, Refusal):
            service.record(Event(number, model, outcome.status, seconds))
            return error(outcome, number)
        labels = tuple("|".join(row.labels) for row in outcome.predictions)
        confidences = tuple(
            sure
            for row in outcome.predictions
            if (sure := getattr(row, "confidence", None)) is not None
        )
        service.record(
            Event(
                number, model, 200, seconds, outcome.release, outcome.version, labels, confidences
            )
        )
        # Already validated: letting FastAPI validate and serialise it once more costs as much as a
        # short text.
        return Response(
            route.finish(outcome).model_dump_json(),
            media_type="application/json",
            headers={"x-request-id": number},
        )

    answer.__annotations__["body"] = route.request  # which FastAPI reads the body by
    answer.__name__ = route.path.rpartition("/")[2]
    return answer


def choose(references: tuple[str, ...], model: str | None) -> str | Refusal:
    """The reference that a request means: as it is served, by its name where one fits, or the only
    one."""
    fitting = [
        reference
        for reference in references
        if model in (None, reference, reference.partition("@")[0])
    ]
    if model in references or len(fitting) == 1:
        return model if model in references and model is not None else fitting[0]
    if not fitting:
        message = f"model: is not served here; {suggest(str(model)[:_LONGEST], references)}"
        return Refusal(404, "unknown_model", message, param="model", code="model_not_found")
    message = f"several releases fit: name one in `model`; {suggest(model, references)}"
    return Refusal(400, "ambiguous_model", message, param="model")


def request_id(headers: Mapping[str, str]) -> str:
    value = headers.get("x-request-id", "")
    return value if _REQUEST_ID.fullmatch(value) else uuid.uuid4().hex


def error(refusal: Refusal, number: str | None = None) -> JSONResponse:
    headers = {} if refusal.retry_after_s is None else {"retry-after": str(refusal.retry_after_s)}
    if number:
        headers["x-request-id"] = number
    return JSONResponse(error_body(refusal), status_code=refusal.status, headers=headers)


async def _invalid(request: Request, err: Exception) -> Response:
    """What is wrong and where, without what was sent: FastAPI's own answer repeats all of it."""
    assert isinstance(err, RequestValidationError)
    messages: list[str] = []
    places: list[str] = []
    for item in err.errors()[:5]:
        if item["type"] == "json_invalid":
            messages.append("the body is not valid JSON")
            continue
        # A key is shown where it reads as parameters of programs do: any other may be text of a
        # patient.
        place = ".".join(
            str(part)
            for part in item["loc"][1:]
            if isinstance(part, int) or _PARAMETER.fullmatch(part)
        )
        if item["type"] == "too_short" and any(other.startswith(place) for other in places):
            continue  # pydantic counts no item where the first one ended it
        places.append(place)
        messages.append(f"{place or 'body'}: {str(item['msg']).removeprefix('Value error, ')}")
    status = (
        400 if request.url.path.endswith((CHAT_PATH, COMPLETION_PATH)) else 422
    )  # as OpenAI's clients expect it of these
    return error(
        Refusal(
            status, "invalid_request", "; ".join(messages), param=next(filter(None, places), None)
        )
    )


async def _http_error(request: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)
    kinds = {404: "not_found", 405: "method_not_allowed"}
    return error(
        Refusal(err.status_code, kinds.get(err.status_code, "http_error"), str(err.detail))
    )


class _LastResort:
    """The boundary: the client gets a typed body, the log gets where it happened and no value.
    Plain ASGI: Starlette's base costs a task a request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def watch(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception as err:
            log.error("%s at %s", type(err).__name__, _innermost(err))
            if has_begun or scope["type"] != "http":
                raise
            answer = error(
                Refusal(
                    500,
                    "internal_error",
                    "the request could not be answered; the server's log has the cause",
                )
            )
            await answer(scope, receive, send)


def _innermost(err: BaseException) -> str:
    trace = err.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "an unknown place"
