"""The answers of `POST /v1/decisions`, in the format of OpenAI's Decisions API."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from medray.serving.decisions import Certainty, QuestionResponse


class _NamedDecision(Certainty):
    name: str | None


class PredicateDecision(_NamedDecision):
    type: Literal["predicate"] = "predicate"
    probability: float = Field(description="calibrated probability that the statement is true")
    decision: bool = Field(
        description="whether the release takes it for true, by the threshold of its label"
    )


class ChoiceProbability(BaseModel):
    model_config = ConfigDict(frozen=True)
    value: str | bool
    probability: float


class ChoiceDecision(_NamedDecision):
    type: Literal["choice"] = "choice"
    choice: str | bool
    confidence: float = Field(
        description="0 if all choices are equally probable, 1 if one has everything"
    )
    probabilities: tuple[ChoiceProbability, ...]


class LevelProbability(BaseModel):
    model_config = ConfigDict(frozen=True)
    value: int
    label: str
    probability: float


class ScoreDecision(_NamedDecision):
    type: Literal["score"] = "score"
    score: float = Field(description="the expected level, counted from 0")
    confidence: float = Field(
        description="1 if one level has everything; less, the more distant levels are probable"
    )
    probabilities: tuple[LevelProbability, ...]


class RefusalDecision(_NamedDecision):
    """The release abstains from this question."""

    type: Literal["refusal"] = "refusal"


Decision = Annotated[
    PredicateDecision | ChoiceDecision | ScoreDecision | RefusalDecision,
    Field(discriminator="type"),
]


class InputTokensDetails(BaseModel):
    model_config = ConfigDict(frozen=True)
    cached_tokens: Literal[0] = 0
    cache_write_tokens: Literal[0] = 0


class OutputTokensDetails(BaseModel):
    model_config = ConfigDict(frozen=True)
    reasoning_tokens: Literal[0] = 0


class DecisionsUsage(BaseModel):
    model_config = ConfigDict(frozen=True)
    input_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class DecisionsResponse(QuestionResponse):
    answers: tuple[Decision, ...] = Field(description="in the order of the questions")
    usage: DecisionsUsage
