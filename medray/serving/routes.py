"""The routes that answer texts and conversations. Imports no Ray."""

import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from medray.errors import suggest
from medray.serving import notes, openai_answers
from medray.serving.openai_answers import CompletionCall, Shape
from medray.serving.openai_schemas import ChatCompletion, ChatRequest, Completion, CompletionRequest
from medray.serving.refusals import Refusal, error_response
from medray.serving.schemas import CHAT_PATH, COMPLETION_PATH, ErrorBody, Limits
from medray.serving.service import Event, Service
from medray.tasks.base.route import Route, TextResponse, all_routes

_MAX_NAME = 200  # characters of a name that is compared with those of the releases
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody}
    for status in (400, 401, 404, 408, 413, 421, 422, 429, 431, 500, 503, 504)
}


def add_completion_routes(
    api: FastAPI, service: Service, limits: Limits, *, with_disclaimer: bool, mask_identifiers: bool
) -> None:
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        if len(body.messages) > limits.messages:
            request_id = read_request_id(request.headers)
            service.record(Event(request_id, "", 400, 0.0))
            message = (
                f"messages: one request may hold at most {limits.messages}; leave out the oldest"
            )
            return error_response(
                Refusal(400, "invalid_request", message, param="messages"), request_id
            )
        return await talk(openai_answers.CHAT, body, request)

    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await talk(openai_answers.TEXT, body, request)

    async def talk(
        shape: Shape, body: ChatRequest | CompletionRequest, request: Request
    ) -> Response:
        request_id, start = read_request_id(request.headers), time.perf_counter()
        reference = choose(service.references, body.model)
        if isinstance(reference, Refusal):
            service.record(Event(request_id, "", reference.status, time.perf_counter() - start))
            return error_response(reference, request_id)
        conversation = body.conversation()
        substitute = await notes.mask_conversation(conversation) if mask_identifiers else None
        call = CompletionCall(
            service,
            shape,
            service.talk(reference, substitute.conversation if substitute else conversation),
            request_id,
            reference,
            start,
            with_disclaimer,
            body.include_usage,
            substitute,
        )
        outcome = await call.answer(stream=bool(body.stream))
        return error_response(outcome, request_id) if isinstance(outcome, Refusal) else outcome

    pieces = {
        "content": {"text/event-stream": {}},
        "description": "the answer; server-sent events if `stream` is true",
    }
    responses = ERRORS | {200: pieces}
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


def add_text_routes(
    api: FastAPI, service: Service, limits: Limits, *, mask_identifiers: bool
) -> None:
    for route in all_routes():
        endpoint = _endpoint(service, limits, route, mask_identifiers)
        api.add_api_route(
            route.path, endpoint, methods=["POST"], response_model=route.response, responses=ERRORS
        )


def _endpoint(
    service: Service, limits: Limits, route: Route, mask_identifiers: bool
) -> Callable[..., Awaitable[Response]]:
    async def answer(body: Any, request: Request) -> Response:
        start = time.perf_counter()
        request_id = read_request_id(request.headers)
        reference = choose(service.references, body.model)
        if isinstance(reference, Refusal):
            outcome: TextResponse | Refusal = reference
        elif len(body.inputs or ()) > limits.inputs:
            outcome = Refusal(
                413,
                "too_many_inputs",
                f"inputs: one request may hold at most {limits.inputs}; send several requests",
            )
        else:
            substitute = await notes.mask(body) if mask_identifiers else None
            outcome = await service.answer(reference, substitute.request if substitute else body)
            if substitute and not isinstance(outcome, Refusal):
                outcome = substitute.annotate(outcome)
        # Never the client's own text: each value would become a metric of its own.
        model = reference if isinstance(reference, str) else ""
        seconds = time.perf_counter() - start
        if isinstance(outcome, Refusal):
            service.record(Event(request_id, model, outcome.status, seconds))
            return error_response(outcome, request_id)
        labels = tuple("|".join(row.labels) for row in outcome.predictions)
        confidences = tuple(
            sure
            for row in outcome.predictions
            if (sure := getattr(row, "confidence", None)) is not None
        )
        service.record(
            Event(
                request_id,
                model,
                200,
                seconds,
                outcome.release,
                outcome.version,
                labels,
                confidences,
            )
        )
        # The model is validated already. FastAPI would validate it again, which costs as much as
        # predicting a short text.
        return Response(
            route.finish(outcome).model_dump_json(),
            media_type="application/json",
            headers={"x-request-id": request_id},
        )

    answer.__annotations__["body"] = route.request  # FastAPI parses the body by it
    answer.__name__ = route.path.rpartition("/")[2]
    return answer


def choose(references: tuple[str, ...], model: str | None) -> str | Refusal:
    """Return the served reference that `model` names exactly, or the only one that it can mean."""
    fitting = [
        reference
        for reference in references
        if model in (None, reference, reference.partition("@")[0])
    ]
    if model in references or len(fitting) == 1:
        return model if model in references and model is not None else fitting[0]
    if not fitting:
        message = f"model: no such release is served; {suggest(str(model)[:_MAX_NAME], references)}"
        return Refusal(404, "unknown_model", message, param="model", code="model_not_found")
    message = f"model: several releases match; name one of them; {suggest(model, references)}"
    return Refusal(400, "ambiguous_model", message, param="model")


def read_request_id(headers: Mapping[str, str]) -> str:
    value = headers.get("x-request-id", "")
    return value if _REQUEST_ID.fullmatch(value) else uuid.uuid4().hex
