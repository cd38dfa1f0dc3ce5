"""Refusals: why a request has no answer, as a value and as an HTTP response.

Every error has the same body, which never repeats what a client sent. Imports no Ray."""

import json
import re
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import Send

from medray.serving.schemas import (
    CHAT_PATH,
    COMPLETION_PATH,
    DECISIONS_PATH,
    RETRY_AFTER_S,
    SYSTEMONE_PATH,
    DetailBody,
    InvalidPlace,
)

_PARAMETER = re.compile(r"[a-z][a-z0-9_]{0,39}")
_CLOSING = (408, 413)  # the rest of the body is not read, so the connection closes


@dataclass(frozen=True)
class Refusal:
    """Why a request has no answer. It is a value, because an exception that crosses processes
    leaves a traceback in each log."""

    status: int
    type: str
    message: str
    retry_after_s: int | None = None
    param: str | None = None
    code: str | None = None  # OpenAI's word for the type, where its clients expect one


def too_large(body_bytes: int) -> Refusal:
    return Refusal(413, "body_too_large", f"body: it is larger than {body_bytes} bytes; send less")


def too_late(timeout_s: float) -> Refusal:
    message = f"the answer was not ready in {timeout_s:g} s; send less text, or try again later"
    return Refusal(504, "deadline_exceeded", message)


def full_queue() -> Refusal:
    return Refusal(
        429, "overloaded", "too many requests are waiting; try again later", RETRY_AFTER_S
    )


def error_body(refusal: Refusal) -> dict[str, Any]:
    """Return the body that every error has."""
    detail = {
        "message": refusal.message,
        "type": refusal.type,
        "param": refusal.param,
        "code": refusal.code or refusal.type,
    }
    return {"error": detail}


def content(refusal: Refusal) -> bytes:
    return json.dumps(error_body(refusal)).encode()


async def refuse(send: Send, refusal: Refusal, rest: Awaitable[None] | None = None) -> None:
    """Send a refusal. With `rest`, await it before the response ends."""
    body = content(refusal)
    fields = {"content-type": "application/json", "content-length": str(len(body))}
    if refusal.status == 401:
        fields["www-authenticate"] = "Bearer"
    if refusal.status in _CLOSING:
        fields["connection"] = "close"
    if refusal.retry_after_s is not None:
        fields["retry-after"] = str(refusal.retry_after_s)
    raw = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": rest is not None})
    if rest is not None:
        await rest
        await send({"type": "http.response.body", "body": b""})


def error_response(refusal: Refusal, request_id: str | None = None) -> JSONResponse:
    headers = refusal_headers(refusal, request_id)
    return JSONResponse(error_body(refusal), status_code=refusal.status, headers=headers)


def refusal_headers(refusal: Refusal, request_id: str | None = None) -> dict[str, str]:
    headers = {} if refusal.retry_after_s is None else {"retry-after": str(refusal.retry_after_s)}
    return headers | ({"x-request-id": request_id} if request_id else {})


def is_parameter(name: str) -> bool:
    """Return whether a key looks like a parameter's name. Any other may be a patient's text, and is
    never repeated."""
    return _PARAMETER.fullmatch(name) is not None


def detail_response(
    refusal: Refusal, places: tuple[InvalidPlace, ...], request_id: str | None = None
) -> JSONResponse:
    """Return a refusal in the form of the System One route."""
    body = DetailBody(detail=places).model_dump(mode="json")
    headers = refusal_headers(refusal, request_id)
    return JSONResponse(body, status_code=refusal.status, headers=headers)


async def on_invalid_body(request: Request, err: Exception) -> Response:
    """Report what is wrong and where. FastAPI's own response repeats the whole body."""
    assert isinstance(err, RequestValidationError)
    places: list[InvalidPlace] = []
    for item in err.errors()[:5]:
        message = str(item["msg"]).removeprefix("Value error, ")
        if item["type"] == "json_invalid":
            message, item["loc"] = "the body is not valid JSON", ()
        if item["type"] == "model_attributes_type" and len(item["loc"]) == 1:
            message = _not_an_object(request)
        if item["type"] == "extra_forbidden":
            message = "is not a field of this request; /docs lists its fields"
        if item["type"] == "union_tag_invalid":  # pydantic's message repeats the type
            message = f"type: Input should be {item['ctx']['expected_tags']}"
        loc = tuple(part for part in item["loc"][1:] if isinstance(part, int) or is_parameter(part))
        if item["type"] == "too_short" and any(other.loc[: len(loc)] == loc for other in places):
            continue  # pydantic reports zero items after the first item failed
        places.append(InvalidPlace(loc=loc, msg=message, type=item["type"]))
    path = request.url.path
    # OpenAI's clients expect 400 from their routes.
    status = 400 if path.endswith((CHAT_PATH, COMPLETION_PATH, DECISIONS_PATH)) else 422
    names = [".".join(map(str, place.loc)) for place in places]
    messages = (
        place.msg if place.type == "json_invalid" else f"{name or 'body'}: {place.msg}"
        for name, place in zip(names, places, strict=True)
    )
    param = next(filter(None, names), None)
    refusal = Refusal(status, "invalid_request", "; ".join(messages), param=param)
    if not path.endswith(SYSTEMONE_PATH):
        return error_response(refusal)
    in_body = (one.model_copy(update={"loc": ("body", *one.loc)}) for one in places)
    return detail_response(refusal, tuple(in_body))


def _not_an_object(request: Request) -> str:
    """Return what is wrong with a body that is no JSON object, or that was not read as JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return "is not a JSON object; send an object with the fields that /docs lists"
    return "is not sent as JSON; add -H 'content-type: application/json'"


async def on_http_exception(request: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)
    kinds = {404: "not_found", 405: "method_not_allowed"}
    kind, reason = kinds.get(err.status_code, "http_error"), str(err.detail)
    if err.status_code == 404:  # explanations, for one, are a route only where they are set
        reason = f"{request.url.path:.80}: no such route; /docs lists those of this service"
    return error_response(Refusal(err.status_code, kind, reason))
