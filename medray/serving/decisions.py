"""The routes of typed questions. Each wire format is one module with a `QuestionRequest`, which
reads a request into an `Inquiry` and writes the answers. Imports no Ray."""

import json
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from medray.client.answers import Citations
from medray.serving import notes
from medray.serving.refusals import Refusal
from medray.serving.routes import ReleaseCall
from medray.serving.schemas import Limits
from medray.serving.service import Inquiry, InquiryReply, Service
from medray.tasks.base.route import InputNote
from medray.types import DISCLAIMER, QuestionAnswer

# With any constraint, pydantic refuses half of a surrogate pair.
AnyText = Annotated[str, StringConstraints(min_length=0)]
SomeText = Annotated[str, StringConstraints(min_length=1)]
_MOST_LEVELS = 32  # of JSON in a request; Python's own limit depends on the caller


class QuestionRequest(BaseModel):
    """A request of one format. New clients send new fields, so unknown ones are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    PATH: ClassVar[str]
    RESPONSE: ClassVar[type[BaseModel]]
    ERRORS: ClassVar[dict[int | str, dict[str, Any]]]

    model: str | None = Field(
        None, description="the release that answers; optional if only one is served"
    )

    citations: bool = Field(
        False,
        description=(
            "name the sentences on which each answer rests; the model reads the text again "
            "without each of them"
        ),
    )

    @cached_property
    def inquiry(self) -> Inquiry:
        inquiry = replace(self.read(), citations=self.citations)
        if not inquiry.text.strip():
            raise ValueError("the input holds no text; send some")
        return inquiry

    @model_validator(mode="after")
    def _readable(self) -> Self:
        _ = self.inquiry
        return self

    @abstractmethod
    def read(self) -> Inquiry:
        """Return the text and its questions, or raise ValueError."""
        ...

    @abstractmethod
    def respond(self, reply: InquiryReply, model: str, request_id: str) -> BaseModel: ...

    @abstractmethod
    def refuse(self, refusal: Refusal, request_id: str) -> JSONResponse: ...


class QuestionResponse(BaseModel):
    """The fields of medray in a response of any format."""

    model_config = ConfigDict(frozen=True)
    model: str
    release: str
    version: int
    disclaimer: str = DISCLAIMER
    notes: tuple[InputNote, ...] = Field(
        (), description="one for the text, if mask_identifiers or flag_unlike_training is set"
    )


class Certainty(BaseModel):
    """How sure a release is of an answer."""

    model_config = ConfigDict(frozen=True)
    answer_confidence: float = Field(
        description=(
            "calibrated probability that the release's own answer is right; of a release with "
            "several labels, that of the text's least certain label"
        )
    )
    threshold: float | None = Field(
        description="the answer_confidence below which the release abstains"
    )
    citations: Citations | None = Field(
        None,
        description=(
            "if requested: where the answer stands in the text, which is that of all messages "
            "joined by blank lines"
        ),
    )


def certainty(answer: QuestionAnswer) -> dict[str, Any]:
    """Return the fields of `Certainty` but for citations."""
    assert answer.confidence is not None  # answers are calibrated
    return {"answer_confidence": answer.confidence, "threshold": answer.threshold}


def citations_of(reply: InquiryReply) -> tuple[Citations | None, ...]:
    """Return the citations per answer, or None for each if the request asks for none."""
    return reply.citations or (None,) * len(reply.answers)


def common_fields(reply: InquiryReply, model: str) -> dict[str, Any]:
    """Return the fields of `QuestionResponse`."""
    return {
        "model": model,
        "release": reply.release,
        "version": reply.version,
        "notes": reply.notes,
    }


def render_json(value: Any) -> str:
    """Return JSON as the text that a model reads."""
    levels = [value]
    for _ in range(_MOST_LEVELS):
        levels = [
            inner
            for entry in levels
            if isinstance(entry, dict | list)
            for inner in (entry.values() if isinstance(entry, dict) else entry)
        ]
    if levels:
        raise ValueError(f"JSON has more than {_MOST_LEVELS} levels; send less deep values")
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("JSON holds half of a surrogate pair; send valid Unicode") from None
    return text


def add_question_routes(
    api: FastAPI,
    service: Service,
    limits: Limits,
    formats: tuple[type[QuestionRequest], ...],
    *,
    mask_identifiers: bool,
) -> None:
    for format in formats:
        api.add_api_route(
            format.PATH,
            _endpoint(service, limits, format, mask_identifiers),
            methods=["POST"],
            response_model=format.RESPONSE,
            responses=format.ERRORS,
        )


def _endpoint(
    service: Service, limits: Limits, format: type[QuestionRequest], mask_identifiers: bool
) -> Callable[..., Awaitable[Response]]:
    async def answer(body: Any, request: Request) -> Response:
        call = ReleaseCall(service, request, body.model)
        outcome = (
            call.refusal
            or _excess(body.inquiry, limits)
            or await _ask(service, call.model, body.inquiry, mask_identifiers)
        )
        if isinstance(outcome, Refusal):
            call.record(outcome)
            response: Response = body.refuse(outcome, call.request_id)
            return response
        call.record(outcome, outcome.labels, outcome.confidences)
        return call.response(body.respond(outcome, call.model, call.request_id))

    answer.__annotations__["body"] = format  # FastAPI parses the body by it
    answer.__name__ = format.PATH.rpartition("/")[2]
    return answer


def _excess(inquiry: Inquiry, limits: Limits) -> Refusal | None:
    """Return a refusal of more questions or options than one request may hold."""
    if len(inquiry.questions) > limits.questions:
        return Refusal(
            413,
            "too_many_questions",
            f"questions: one request may hold at most {limits.questions}; send several requests",
            param="questions",
        )
    if max(len(question.options) for question in inquiry.questions) > limits.options:
        return Refusal(
            413,
            "too_many_options",
            f"questions: one question may have at most {limits.options} options; give fewer",
            param="questions",
        )
    return None


async def _ask(
    service: Service, reference: str, inquiry: Inquiry, mask_identifiers: bool
) -> InquiryReply | Refusal:
    if not mask_identifiers:
        return await service.decide(reference, inquiry)
    substitute = await notes.mask_text(inquiry.text)
    outcome = await service.decide(reference, replace(inquiry, text=substitute.text))
    if isinstance(outcome, Refusal):
        return outcome
    (note,) = outcome.notes or (InputNote(),)
    return replace(
        outcome,
        notes=(note.model_copy(update={"masked": substitute.counts}),),
        citations=tuple(
            notes.unmask_citations(citations, inquiry.text, substitute)
            for citations in outcome.citations
        ),
    )
