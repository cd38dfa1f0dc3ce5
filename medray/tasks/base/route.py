"""How a task is served: the paths of its releases, and what each request and response holds. The
folder of tasks is the table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol, Self, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medray import plugins
from medray.tasks.base.protocol import Task
from medray.text.identifiers import Kind
from medray.types import DISCLAIMER, Example, Prediction

_MOST_KEYS = 20


class Body(BaseModel):
    """What is read or written over HTTP: closed to unknown keys, and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TextRequest(Body):
    text: str | None = Field(None, min_length=1)
    # The first wrong one is enough: an error for each of a megabyte of them takes seconds.
    inputs: (
        Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(fail_fast=True)] | None
    ) = Field(None, min_length=1)
    model: str | None = Field(
        None, description="the release that answers; may be left out where one is served"
    )

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and len(raw) > _MOST_KEYS:
            raise ValueError(f"has more than {_MOST_KEYS} keys")
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
        """One per answer, by position."""
        return [Example(str(position), text) for position, text in enumerate(self.texts)]


class InputNote(Body):
    """What the guards have to say of one input."""

    masked: dict[Kind, int] = Field(
        default_factory=dict,
        description="identifiers that were masked before anything read them, by kind",
    )
    unlike_training: tuple[str, ...] = Field(
        (), description="a sentence for each way in which the text is unlike those of the training"
    )
    distance: float | None = Field(
        None,
        description=(
            "of the text as the model reads it from the release's validation texts; about 1 for "
            "one like them"
        ),
    )


class NotesResponse(Body):
    notes: tuple[InputNote, ...] = Field(
        (), description="one for each input, where mask_identifiers or flag_unlike_training is set"
    )


class TextResponse(NotesResponse):
    """Each prediction has the `labels` that the log of requests gets, and where it has one a
    `confidence`."""

    release: str
    version: int
    predictions: tuple[Any, ...]


def _as_it_is(response: TextResponse) -> TextResponse:
    return response


class DisclaimedResponse(NotesResponse):
    """A second base of a response that carries the disclaimer, behind its predictions."""

    predictions: tuple[Any, ...]
    disclaimer: str = DISCLAIMER


@dataclass(frozen=True)
class Route:
    """One path; the task answers with the response of its first route, which `finish` makes this
    one's."""

    path: str
    request: type[TextRequest]
    response: type[TextResponse]
    finish: Callable[[TextResponse], TextResponse] = _as_it_is


@runtime_checkable
class Served(Task, Protocol):
    """A task whose texts are answered over HTTP. Tasks may share a route."""

    routes: ClassVar[tuple[Route, ...]]

    def respond(self, predictions: Sequence[Prediction]) -> tuple[Any, ...]:
        """The response's predictions."""
        ...


def routes_of(task: str) -> tuple[Route, ...]:
    """Those of the releases of a task, the usual one first; none where it is not served by text, or
    not known."""
    if task not in plugins.names("tasks"):
        return ()
    routes: tuple[Route, ...] = getattr(plugins.find("tasks", task).Task, "routes", ())
    return routes


def all_routes() -> list[Route]:
    """Those of every task in the folder, each once."""
    routes = list(
        dict.fromkeys(route for task in plugins.names("tasks") for route in routes_of(task))
    )
    assert len({route.path for route in routes}) == len(routes), (
        "two tasks declare different routes of one path"
    )
    return routes


def served_tasks() -> list[str]:
    return [task for task in plugins.names("tasks") if routes_of(task)]
