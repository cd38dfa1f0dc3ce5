"""The HTTP routes of tasks: the paths of their releases, and the bodies of requests and responses.
Each task names its own routes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import fields as fields_of
from typing import Annotated, Any, ClassVar, Protocol, Self, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medray import plugins
from medray.client.answers import EXPLANATION_CAVEAT, EXPLANATION_METHOD, Explanation, WordShare
from medray.tasks.base.protocol import Task
from medray.text.identifiers import Kind
from medray.types import DISCLAIMER, Example, Prediction

_MOST_KEYS = 20


class Body(BaseModel):
    """A request or response body, frozen and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RequestBody(Body):
    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and len(raw) > _MOST_KEYS:
            raise ValueError(f"has more than {_MOST_KEYS} keys")
        return raw


class TextRequest(RequestBody):
    text: str | None = Field(None, min_length=1)
    # Validation stops at the first error, since listing all errors of a megabyte takes seconds.
    inputs: (
        Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(fail_fast=True)] | None
    ) = Field(None, min_length=1)
    model: str | None = Field(
        None, description="the release to use; optional if one release is served"
    )

    @model_validator(mode="before")
    @classmethod
    def _has_text(cls, raw: Any) -> Any:
        is_short = isinstance(raw, dict) and len(raw) <= _MOST_KEYS
        if is_short and not raw.keys() & {"text", "inputs"}:
            raise ValueError('has no text; send it as {"text": "..."}, or several as "inputs"')
        return raw

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.text is None) == (self.inputs is None):
            raise ValueError("give exactly one of text and inputs")
        return self

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,) if self.text is not None else self.inputs or ()

    def examples(self) -> list[Example]:
        """Return one example per text, with its position as id."""
        return [Example(str(position), text) for position, text in enumerate(self.texts)]


class LabelRequest(TextRequest):
    citations: bool = Field(
        False,
        description=(
            "name the sentences on which each answer rests; the model reads the text again "
            "without each of them"
        ),
    )


class InputNote(Body):
    """The findings of the guards about one input."""

    masked: dict[Kind, int] = Field(
        default_factory=dict,
        description=(
            "number of identifiers that were masked before the model read the text, by kind"
        ),
    )
    unlike_training: tuple[str, ...] = Field(
        (), description="one sentence per way in which the text differs from the training texts"
    )
    distance: float | None = Field(
        None,
        description=(
            "distance of the text's embedding from those of the release's validation texts; about "
            "1 for a similar text"
        ),
    )


class NotesResponse(Body):
    notes: tuple[InputNote, ...] = Field(
        (), description="one per input, if mask_identifiers or flag_unlike_training is set"
    )


class TextResponse(NotesResponse):
    """A response with predictions. Each prediction has `labels`, which the request log shows, and
    may have a `confidence`."""

    release: str
    version: int
    predictions: tuple[Any, ...]


class ExplainRequest(RequestBody):
    text: str = Field(min_length=1)
    label: str | None = Field(
        None, min_length=1, description="the label to explain, by default the predicted one"
    )
    model: str | None = Field(
        None, description="the release to use; optional if one release is served"
    )


class ExplainResponse(Body):
    """The shares of a text's words in the output for a label."""

    release: str
    version: int
    label: str
    words: tuple[WordShare, ...] = Field(description="those that the model read, in order")
    total: float = Field(
        description=(
            "the label's output for the text minus that for a neutral one, to which the shares of "
            "all words add up but for the error"
        )
    )
    error: float = Field(
        description="what is missing from that sum, relative to all shares without their signs"
    )
    method: str = EXPLANATION_METHOD
    caveat: str = EXPLANATION_CAVEAT
    masked: dict[Kind, int] = Field(
        default_factory=dict,
        description="identifiers that were masked before the model read the text, by kind",
    )
    disclaimer: str = DISCLAIMER

    @classmethod
    def of(cls, explanation: Explanation, release: str, version: int) -> Self:
        fields = {field.name: getattr(explanation, field.name) for field in fields_of(explanation)}
        del fields["text"]
        return cls(release=release, version=version, **fields)


def _as_it_is(response: TextResponse) -> TextResponse:
    return response


class DisclaimedResponse(NotesResponse):
    """A base of responses that end with the disclaimer."""

    predictions: tuple[Any, ...]
    disclaimer: str = DISCLAIMER


@dataclass(frozen=True)
class Route:
    """A path with its bodies. A task returns the response of its first route; `finish` converts it
    to the response of this route."""

    path: str
    request: type[TextRequest]
    response: type[TextResponse]
    finish: Callable[[TextResponse], TextResponse] = _as_it_is


@runtime_checkable
class Served(Task, Protocol):
    """A task that is served over HTTP. Tasks may share a route."""

    routes: ClassVar[tuple[Route, ...]]

    def respond(self, predictions: Sequence[Prediction]) -> tuple[Any, ...]:
        """Return the predictions of the response."""
        ...


def routes_of(task: str) -> tuple[Route, ...]:
    """Return the routes of a task, the main one first. A task that is unknown or not served by text
    has none."""
    if task not in plugins.names("tasks"):
        return ()
    routes: tuple[Route, ...] = getattr(plugins.find("tasks", task).Task, "routes", ())
    return routes


def all_routes() -> list[Route]:
    """Return the routes of all tasks, each once."""
    routes = list(
        dict.fromkeys(route for task in plugins.names("tasks") for route in routes_of(task))
    )
    assert len({route.path for route in routes}) == len(routes), (
        "two tasks declare different routes of one path"
    )
    return routes


def served_tasks() -> list[str]:
    return [task for task in plugins.names("tasks") if routes_of(task)]
