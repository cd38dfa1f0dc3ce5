"""What HTTP asks of a task that answers texts."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from medray.data.base import Example
from medray.schema import Section


class TextRequest(Section):
    text: str | None = Field(None, min_length=1)
    inputs: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.text is None) == (self.inputs is None):
            raise ValueError("give exactly one of text and inputs")
        return self

    def examples(self) -> list[Example]:
        """One an answer, by position."""
        texts = [self.text] if self.text is not None else self.inputs or ()
        return [Example(str(position), text) for position, text in enumerate(texts)]
