"""`POST /v1/systemone`: typed questions in the System One format, with medray's fields added."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator

from medray.serving.decisions import (
    Certainty,
    QuestionRequest,
    QuestionResponse,
    SomeText,
    certainty,
    citations_of,
    common_fields,
    render_json,
)
from medray.serving.refusals import Refusal, detail_response, is_parameter
from medray.serving.routes import ERRORS
from medray.serving.schemas import SYSTEMONE_PATH, DetailBody, ErrorBody, InvalidPlace
from medray.serving.service import Inquiry, InquiryReply
from medray.tasks.base.questions import concentration
from medray.types import PREDICATE_VALUES, Question, QuestionAnswer, QuestionKind, QuestionOption

# Validation reports an error per entry of an object, so the number of entries has a bound.
_MOST_ENTRIES = 5000
_Content = SomeText | dict[str, Any] | list[Any]
_Share = Annotated[float, Field(ge=0, le=1)]


class _SystemOneBody(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class NoulCriteria(_SystemOneBody):
    true: _Content | None = None
    false: _Content | None = None


class NoulQuestion(_SystemOneBody):
    """A question with yes or no as its answer."""

    type: Literal["noul"]
    instructions: _Content | None = None
    criteria: NoulCriteria | None = None

    def question(self, name: str) -> Question:
        criteria = self.criteria or NoulCriteria()
        options = zip(PREDICATE_VALUES, (criteria.true, criteria.false), strict=True)
        return _question(name, "predicate", self.instructions, dict(options))

    def answer(self, answer: QuestionAnswer) -> dict[str, Any]:
        return {
            "type": self.type,
            "noul": answer.probabilities[0],
            "probabilities": _shares(answer),
            "decision": answer.value == PREDICATE_VALUES[0],
        }


class ChoiceQuestion(_SystemOneBody):
    """A question with one of its criteria as its answer."""

    type: Literal["choice"]
    instructions: _Content | None = None
    criteria: (
        Annotated[tuple[SomeText, ...], Field(min_length=2, fail_fast=True)]
        | Annotated[dict[SomeText, _Content | None], Field(min_length=2)]
    ) = Field(description="labels, or labels with their descriptions")

    @field_validator("criteria", mode="before")
    @classmethod
    def _few(cls, raw: Any) -> Any:
        return _few_entries(raw)

    @field_validator("criteria")
    @classmethod
    def _unique(cls, criteria: Any) -> Any:
        return _distinct(criteria)

    def question(self, name: str) -> Question:
        criteria = self.criteria
        options = criteria if isinstance(criteria, dict) else dict.fromkeys(criteria)
        return _question(name, "choice", self.instructions, options)

    def answer(self, answer: QuestionAnswer) -> dict[str, Any]:
        return {
            "type": self.type,
            "choice": answer.value,
            "probabilities": _shares(answer),
            "confidence": concentration(answer),
        }


class ScoreQuestion(_SystemOneBody):
    """A question with a place on a scale as its answer."""

    type: Literal["score"]
    instructions: _Content | None = None
    criteria: Annotated[tuple[_Content, ...], Field(min_length=2, fail_fast=True)] = Field(
        description="the levels, low to high"
    )

    @field_validator("criteria")
    @classmethod
    def _unique(cls, criteria: Any) -> Any:
        _distinct([_render(level) for level in criteria])
        return criteria

    def question(self, name: str) -> Question:
        levels = dict.fromkeys(map(_render, self.criteria))
        return _question(name, "score", self.instructions, levels)

    def answer(self, answer: QuestionAnswer) -> dict[str, Any]:
        return {
            "type": self.type,
            "score": answer.score,
            "legend": {str(place): level for place, level in enumerate(self.criteria)},
            "probabilities": {
                str(place): share for place, share in enumerate(answer.probabilities)
            },
            "confidence": concentration(answer),
        }


class _SystemOneCertainty(Certainty):
    abstained: bool = Field(description="true where the answer should not be relied on")


class NoulAnswer(_SystemOneCertainty):
    type: Literal["noul"]
    noul: float = Field(description="calibrated probability of yes")
    probabilities: dict[str, float]
    decision: bool = Field(description="the release's own answer, by the threshold of its label")


class OptionAnswer(_SystemOneCertainty):
    type: Literal["choice"]
    choice: str
    probabilities: dict[str, float]
    confidence: float = Field(
        description="0 if all options are equally probable, 1 if one has everything"
    )


class ScoreAnswer(_SystemOneCertainty):
    type: Literal["score"]
    score: float = Field(description="the expected level, counted from 0")
    legend: dict[str, _Content]
    probabilities: dict[str, float]
    confidence: float = Field(
        description="1 if one level has everything; less, the more distant levels are probable"
    )


SystemOneAnswer = Annotated[NoulAnswer | OptionAnswer | ScoreAnswer, Field(discriminator="type")]


class SystemOneUsage(BaseModel):
    model_config = ConfigDict(frozen=True)
    input_tokens: int
    output_tokens: int


class SystemOneResponse(QuestionResponse):
    id: str
    answers: dict[str, SystemOneAnswer] = Field(description="by the names of the questions")
    usage: SystemOneUsage


class SystemOneRequest(QuestionRequest):
    PATH = SYSTEMONE_PATH
    RESPONSE = SystemOneResponse
    ERRORS = {status: {"model": DetailBody | ErrorBody} for status in ERRORS}

    state: _Content = Field(description="the text; an object or a list is read as its JSON")
    questions: Annotated[
        dict[
            SomeText,
            Annotated[NoulQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")],
        ],
        Field(min_length=1),
    ] = Field(description="by the names that you choose")
    abstain: _Share | dict[str, _Share | None] | None = Field(
        None,
        description=(
            "answers with a lower answer_confidence are abstained, instead of those below the "
            "release's own threshold; also by name or type of question, where null is never"
        ),
    )
    assets: dict[str, Any] | None = Field(None, description="not supported")

    @field_validator("questions", "abstain", mode="before")
    @classmethod
    def _few(cls, raw: Any) -> Any:
        return _few_entries(raw)

    @field_validator("assets")
    @classmethod
    def _none(cls, assets: Any) -> Any:
        if assets:
            raise ValueError("images are not supported; send text")
        return assets

    def read(self) -> Inquiry:
        questions = (question.question(name) for name, question in self.questions.items())
        return Inquiry(_render(self.state), tuple(questions))

    def respond(self, reply: InquiryReply, model: str, request_id: str) -> SystemOneResponse:
        answers = {
            name: question.answer(answer)
            | self._certainty(name, question.type, answer)
            | {"citations": citations}
            for (name, question), answer, citations in zip(
                self.questions.items(), reply.answers, citations_of(reply), strict=True
            )
        }
        usage = {"input_tokens": reply.input_tokens, "output_tokens": reply.output_tokens}
        return SystemOneResponse.model_validate(
            {
                **common_fields(reply, model),
                "id": f"dec-{request_id}",
                "answers": answers,
                "usage": usage,
            }
        )

    def _certainty(self, name: str, kind: str, answer: QuestionAnswer) -> dict[str, Any]:
        fields = certainty(answer) | {"abstained": answer.abstained}
        thresholds = self.abstain if isinstance(self.abstain, dict) else {name: self.abstain}
        key = name if name in thresholds else kind
        if self.abstain is not None and key in thresholds:
            threshold = thresholds[key]
            is_below = threshold is not None and fields["answer_confidence"] < threshold
            fields |= {"threshold": threshold, "abstained": is_below}
        return fields

    def refuse(self, refusal: Refusal, request_id: str) -> JSONResponse:
        entry = InvalidPlace(
            loc=("body", *self._place(refusal.param)),
            msg=refusal.message.removeprefix(f"{refusal.param}: "),
            type=refusal.type,
        )
        return detail_response(refusal, (entry,), request_id)

    def _place(self, param: str | None) -> tuple[str, ...]:
        """Return the place of a parameter; a question has its name, if it looks like one."""
        first, _, number = (param or "").partition(".")
        name = list(self.questions)[int(number)] if number else ""
        return tuple(filter(None, (first, name if is_parameter(name) else number)))


def _question(
    name: str,
    kind: QuestionKind,
    instructions: str | dict[str, Any] | list[Any] | None,
    options: Mapping[str, Any],
) -> Question:
    return Question(
        name,
        kind,
        _render(instructions),
        tuple(QuestionOption(value, _render(text)) for value, text in options.items()),
    )


def _shares(answer: QuestionAnswer) -> dict[str, float]:
    return dict(zip(answer.values, answer.probabilities, strict=True))


def _render(content: Any) -> str:
    return "" if content is None else content if isinstance(content, str) else render_json(content)


def _few_entries(raw: Any) -> Any:
    if isinstance(raw, dict) and len(raw) > _MOST_ENTRIES:
        raise ValueError(f"has more than {_MOST_ENTRIES} entries; send fewer")
    return raw


def _distinct(values: Any) -> Any:
    if len(set(values)) < len(values):
        raise ValueError("two are the same; make them unique")
    return values
