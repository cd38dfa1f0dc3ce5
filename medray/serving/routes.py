"""The routes that answer texts and conversations. Imports no Ray."""

import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel

from medray.errors import suggest
from medray.serving import notes, openai_answers
from medray.serving.openai_answers import CompletionCall, Shape
from medray.serving.openai_schemas import ChatCompletion, ChatRequest, Completion, CompletionRequest
from medray.serving.refusals import Refusal, error_response
from medray.serving.schemas import CHAT_PATH, COMPLETION_PATH, ErrorBody, Limits
from medray.serving.service import Event, InquiryReply, Service
from medray.tasks.base.route import (
    ExplainResponse,
    Route,
    TextRequest,
    TextResponse,
    all_routes,
)

_MAX_NAME = 200  # characters of a name that is compared with those of the releases
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody}
    for status in (400, 401, 404, 408, 413, 421, 422, 429, 431, 500, 503, 504)
}


class ReleaseCall:
    """One request for a release: the one that answers, or why none does. It is recorded once."""

    def __init__(
        self, service: Service, request: Request, model: str | None, *, is_explanation: bool = False
    ) -> None:
        self.start = time.perf_counter()
        self.service, self.is_explanation = service, is_explanation
        self.request_id = read_request_id(request.headers)
        reference = choose(service.references, model)
        self.refusal = reference if isinstance(reference, Refusal) else None
        # Never the client's own text: each value would become a metric of its own.
        self.model = "" if isinstance(reference, Refusal) else reference

    def record(
        self,
        outcome: TextResponse | InquiryReply | ExplainResponse | Refusal,
        labels: tuple[str, ...] = (),
        confidences: tuple[float, ...] = (),
    ) -> None:
        status, release, version = (
            (outcome.status, "", 0)
            if isinstance(outcome, Refusal)
            else (200, outcome.release, outcome.version)
        )
        self.service.record(
            Event(
                self.request_id,
                self.model,
                status,
                time.perf_counter() - self.start,
                release,
                version,
                labels,
                confidences,
                is_explanation=self.is_explanation,
            )
        )

    def response(self, body: BaseModel) -> Response:
        """Return a body that is validated already. FastAPI would validate it again, which costs as
        much as predicting a short text."""
        return Response(
            body.model_dump_json(),
            media_type="application/json",
            headers={"x-request-id": self.request_id},
        )


def add_completion_routes(
    api: FastAPI, service: Service, limits: Limits, *, with_disclaimer: bool, mask_identifiers: bool
) -> None:
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        excess = None
        if len(body.messages) > limits.messages:
            message = (
                f"messages: one request may hold at most {limits.messages}; leave out the oldest"
            )
            excess = Refusal(400, "invalid_request", message, param="messages")
        return await talk(openai_answers.CHAT, body, request, excess)

    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await talk(openai_answers.TEXT, body, request)

    async def talk(
        shape: Shape,
        body: ChatRequest | CompletionRequest,
        request: Request,
        excess: Refusal | None = None,
    ) -> Response:
        call = ReleaseCall(service, request, body.model)
        if refusal := excess or call.refusal:
            call.record(refusal)
            return error_response(refusal, call.request_id)
        conversation = body.conversation()
        substitute = await notes.mask_conversation(conversation) if mask_identifiers else None
        completion = CompletionCall(
            service,
            shape,
            service.talk(call.model, substitute.conversation if substitute else conversation),
            call.request_id,
            call.model,
            call.start,
            with_disclaimer,
            body.include_usage,
            substitute,
        )
        outcome = await completion.answer(stream=bool(body.stream))
        return error_response(outcome, call.request_id) if isinstance(outcome, Refusal) else outcome

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
        call = ReleaseCall(service, request, body.model)
        outcome = (
            call.refusal
            or _excess(body, limits)
            or await _answer(service, call.model, body, mask_identifiers)
        )
        if isinstance(outcome, Refusal):
            call.record(outcome)
            return error_response(outcome, call.request_id)
        labels = ["|".join(row.labels) for row in outcome.predictions]
        confidences = [
            sure
            for row in outcome.predictions
            if (sure := getattr(row, "confidence", None)) is not None
        ]
        call.record(outcome, tuple(labels), tuple(confidences))
        return call.response(route.finish(outcome))

    answer.__annotations__["body"] = route.request  # FastAPI parses the body by it
    answer.__name__ = route.path.rpartition("/")[2]
    return answer


def _excess(request: TextRequest, limits: Limits) -> Refusal | None:
    if len(request.inputs or ()) <= limits.inputs:
        return None
    return Refusal(
        413,
        "too_many_inputs",
        f"inputs: one request may hold at most {limits.inputs}; send several requests",
    )


async def _answer(
    service: Service, reference: str, request: TextRequest, mask_identifiers: bool
) -> TextResponse | Refusal:
    if not mask_identifiers:
        return await service.answer(reference, request)
    substitute = await notes.mask(request)
    outcome = await service.answer(reference, substitute.request)
    return outcome if isinstance(outcome, Refusal) else substitute.annotate(outcome)


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
