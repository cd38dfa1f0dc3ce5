"""What formats of annotated texts share: a mention is checked against its text, and the kinds that
were asked for are kept."""

from collections.abc import Iterable
from typing import ClassVar

from pydantic import Field, model_validator

from medray.data.formats.base.protocol import FormatOptions
from medray.errors import DataError
from medray.types import Example, Mention


class MentionOptions(FormatOptions):
    HOLDS_MENTIONS: ClassVar[bool] = True
    kinds: tuple[str, ...] | None = Field(
        None, min_length=1, description="kinds of mentions to keep; others are left out"
    )
    kind: str | None = Field(
        None, min_length=1, description="one kind instead of those that are kept"
    )

    @model_validator(mode="after")
    def _known(self) -> "MentionOptions":
        for name in self.kinds or ():
            if self.labels is not None and self.kind is None and name not in self.labels:
                raise ValueError(
                    f"kinds {name!r} and labels {', '.join(self.labels)}: what is kept must be "
                    "among the labels"
                )
        return self

    def select(self, mentions: Iterable[Mention]) -> tuple[Mention, ...]:
        """In the order of the text, each once."""
        chosen = (
            mention for mention in mentions if self.kinds is None or mention.kind in self.kinds
        )
        named = {
            Mention(found.start, found.end, found.text, self.kind or found.kind) for found in chosen
        }
        return tuple(sorted(named, key=lambda found: (found.start, found.end, found.kind)))


def mention_at(
    text: str, start: object, end: object, kind: str, where: str, said: str | None = None
) -> Mention:
    """The mention, if its offsets lie in the text and it reads as the annotation says."""
    for name, value in (("start", start), ("end", end)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise DataError(f"{where}: {name} must be a whole number, found {type(value).__name__}")
    assert isinstance(start, int)
    assert isinstance(end, int)
    if not 0 <= start < end <= len(text):
        raise DataError(
            f"{where}: a mention from {start} to {end} does not lie in a text of {len(text)} "
            "characters"
        )
    if not kind:
        raise DataError(f"{where}: the mention from {start} to {end} has no kind")
    found = text[start:end]
    if said is not None and said != found:
        raise DataError(
            f"{where}: the mention from {start} to {end} is said to be another text than stands "
            "there"
        )
    if found != found.strip():
        raise DataError(f"{where}: the mention from {start} to {end} begins or ends with a blank")
    return Mention(start, end, found, kind)


def kinds_of(mentions: Iterable[Mention]) -> tuple[str, ...]:
    return tuple(sorted({mention.kind for mention in mentions}))


def check_only_mentions(example: Example) -> None:
    if set(example.labels) != set(kinds_of(example.mentions)):
        where = example.where or example.id
        raise DataError(
            f"{where}: has the labels {', '.join(example.labels)}, and this format holds mentions "
            "alone; jsonl holds labels"
        )
