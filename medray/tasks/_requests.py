"""What HTTP asks of a task that answers texts."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from medray.data.base import Example
from medray.schema import Section

_MOST_KEYS = 20


class TextRequest(Section):
    text: str | None = Field(None, min_length=1)
    # The first wrong one is enough: an error for each of a megabyte of them takes seconds.
    inputs: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(fail_fast=True)] | None = Field(None, min_length=1)

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

    def examples(self) -> list[Example]:
        """One an answer, by position."""
        texts = [self.text] if self.text is not None else self.inputs or ()
        return [Example(str(position), text) for position, text in enumerate(texts)]
