"""`POST /v1/decisions`: typed questions in the format of OpenAI's Decisions API, with medray's
fields added."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from medray.serving.decisions import (
    AnyText,
    QuestionRequest,
    SomeText,
    certainty,
    citations_of,
    common_fields,
    render_json,
)
from medray.serving.openai_decision_answers import (
    ChoiceDecision,
    ChoiceProbability,
    DecisionsResponse,
    DecisionsUsage,
    LevelProbability,
    PredicateDecision,
    RefusalDecision,
    ScoreDecision,
)
from medray.serving.refusals import Refusal, error_response
from medray.serving.routes import ERRORS
from medray.serving.schemas import DECISIONS_PATH
from medray.serving.service import Inquiry, InquiryReply
from medray.tasks.base.decision_formats import decisions_question
from medray.tasks.base.questions import concentration
from medray.types import PREDICATE_VALUES, Question, QuestionAnswer, QuestionOption

_Value = Annotated[str, Field(strict=True, min_length=1)] | Annotated[bool, Field(strict=True)]
_JsonFields = dict[str, Any]


class _DecisionBody(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class DecisionPart(_DecisionBody):
    """A part of the input or of instructions: a text or JSON. Images are refused."""

    type: Literal["input_text", "output_text", "refusal", "input_json", "input_image"]
    text: AnyText | None = None
    refusal: AnyText | None = None
    data: _JsonFields | list[_JsonFields] | None = None

    @model_validator(mode="after")
    def _readable(self) -> Self:
        self.render()
        return self

    def render(self) -> str:
        if self.type == "input_image":
            raise ValueError("images are not supported; send text")
        if self.type == "input_json":
            return render_json(_require(self.data, "data"))
        name = "refusal" if self.type == "refusal" else "text"
        return str(_require(getattr(self, name), name))


_Parts = Annotated[tuple[DecisionPart, ...], Field(fail_fast=True)]


class DecisionItem(_DecisionBody):
    """A message, or a call of a function or tool or its output. The texts of all items are joined
    by blank lines, without their roles."""

    type: Literal[
        "message",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
    ] = "message"
    role: Literal["user", "developer", "system", "assistant"] | None = None
    content: AnyText | _Parts | None = Field(None, description="of a message")
    arguments: AnyText | None = Field(None, description="of a function call")
    input: AnyText | None = Field(None, description="of a tool call")
    output: AnyText | _Parts | None = Field(None, description="of either output")

    @model_validator(mode="after")
    def _readable(self) -> Self:
        self.render()
        return self

    def render(self) -> str:
        name = {"message": "content", "function_call": "arguments", "custom_tool_call": "input"}
        key = name.get(self.type, "output")
        return _join(_require(getattr(self, key), key))


class DecisionPredicate(_DecisionBody):
    """A statement whose probability is the answer."""

    type: Literal["predicate"]
    name: AnyText | None = None
    instructions: SomeText | _Parts

    def question(self) -> Question:
        options = tuple(map(QuestionOption, PREDICATE_VALUES))
        return Question(self.name or "", self.type, _join(self.instructions), options)

    def answer(self, answer: QuestionAnswer) -> "PredicateDecision":
        return PredicateDecision(
            name=self.name,
            probability=answer.probabilities[0],
            decision=answer.value == PREDICATE_VALUES[0],
            **certainty(answer),
        )


class DecisionOption(_DecisionBody):
    value: _Value = Field(description="a text and a boolean are never equal")
    description: AnyText | None = None


class DecisionChoice(_DecisionBody):
    """A question whose answer is one of its choices."""

    type: Literal["choice"]
    name: AnyText | None = None
    instructions: SomeText | _Parts
    choices: Annotated[tuple[DecisionOption, ...], Field(min_length=2, fail_fast=True)]

    @model_validator(mode="after")
    def _unique(self) -> Self:
        if len({_as_text(choice.value) for choice in self.choices}) < len(self.choices):
            raise ValueError(
                "choices: two are the same; make them unique (a boolean and its own text cannot "
                "be choices of one question)"
            )
        return self

    def question(self) -> Question:
        options = tuple(
            QuestionOption(_as_text(choice.value), choice.description or "")
            for choice in self.choices
        )
        return Question(self.name or "", self.type, _join(self.instructions), options)

    def answer(self, answer: QuestionAnswer) -> "ChoiceDecision":
        values = [choice.value for choice in self.choices]
        return ChoiceDecision(
            name=self.name,
            choice=values[answer.values.index(answer.value)],
            confidence=concentration(answer),
            probabilities=tuple(
                ChoiceProbability(value=value, probability=share)
                for value, share in zip(values, answer.probabilities, strict=True)
            ),
            **certainty(answer),
        )


class DecisionLevel(_DecisionBody):
    label: SomeText
    description: AnyText | None = None


class DecisionScore(_DecisionBody):
    """A question whose answer is a place on a scale."""

    type: Literal["score"]
    name: AnyText | None = None
    instructions: SomeText | _Parts
    levels: Annotated[tuple[DecisionLevel, ...], Field(min_length=2, fail_fast=True)] = Field(
        description="low to high"
    )

    @model_validator(mode="after")
    def _unique(self) -> Self:
        if len({level.label for level in self.levels}) < len(self.levels):
            raise ValueError("levels: two have the same label; make them unique")
        return self

    def question(self) -> Question:
        options = tuple(
            QuestionOption(level.label, level.description or "") for level in self.levels
        )
        return Question(self.name or "", self.type, _join(self.instructions), options)

    def answer(self, answer: QuestionAnswer) -> "ScoreDecision":
        return ScoreDecision(
            name=self.name,
            score=answer.score,
            confidence=concentration(answer),
            probabilities=tuple(
                LevelProbability(value=place, label=level.label, probability=share)
                for place, (level, share) in enumerate(
                    zip(self.levels, answer.probabilities, strict=True)
                )
            ),
            **certainty(answer),
        )


DecisionQuestion = Annotated[
    DecisionPredicate | DecisionChoice | DecisionScore, Field(discriminator="type")
]


class DecisionsRequest(QuestionRequest):
    PATH = DECISIONS_PATH
    RESPONSE = DecisionsResponse
    ERRORS = ERRORS

    input: SomeText | Annotated[tuple[DecisionItem, ...], Field(min_length=1, fail_fast=True)]
    questions: Annotated[tuple[DecisionQuestion, ...], Field(min_length=1, fail_fast=True)]

    def read(self) -> Inquiry:
        text = (
            self.input
            if isinstance(self.input, str)
            else "\n\n".join(item.render() for item in self.input)
        )
        return Inquiry(text, tuple(question.question() for question in self.questions))

    def respond(self, reply: InquiryReply, model: str, request_id: str) -> DecisionsResponse:
        return DecisionsResponse(
            **common_fields(reply, model),
            answers=tuple(
                RefusalDecision(name=question.name, **certainty(answer))
                if answer.abstained
                else question.answer(answer).model_copy(update={"citations": citations})
                for question, answer, citations in zip(
                    self.questions, reply.answers, citations_of(reply), strict=True
                )
            ),
            usage=DecisionsUsage(
                input_tokens=reply.input_tokens,
                output_tokens=reply.output_tokens,
                total_tokens=reply.input_tokens + reply.output_tokens,
            ),
        )

    def refuse(self, refusal: Refusal, request_id: str) -> JSONResponse:
        # OpenAI's clients expect 400 for every invalid request.
        status = 400 if refusal.status == 422 else refusal.status
        return error_response(replace(refusal, status=status), request_id)


def example_request(model: str, questions: Sequence[Question]) -> dict[str, Any] | None:
    """Return a body that asks a release its questions, or None if it has none."""
    if not questions:
        return None
    return {
        "model": model,
        "input": "your text",
        "questions": [decisions_question(question) for question in questions],
    }


def _join(content: str | Sequence[DecisionPart]) -> str:
    return content if isinstance(content, str) else "\n".join(part.render() for part in content)


def _as_text(value: str | bool) -> str:
    return value if isinstance(value, str) else PREDICATE_VALUES[not value]


def _require(value: Any, name: str) -> Any:
    if value is None:
        raise ValueError(f"{name}: it is missing; send it")
    return value
