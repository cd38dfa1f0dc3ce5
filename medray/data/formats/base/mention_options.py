"""What formats of annotated texts share: the options that select kinds of mentions, and the check
of a mention against its text."""

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
    def _check_kinds(self) -> "MentionOptions":
        for name in self.kinds or ():
            if self.labels is not None and self.kind is None and name not in self.labels:
                raise ValueError(
                    f"kinds {name!r} and labels {', '.join(self.labels)}: what is kept must be "
                    "among the labels"
                )
        return self

    def select(self, mentions: Iterable[Mention]) -> tuple[Mention, ...]:
        """Return the mentions of the kinds to keep, without repeats, in the order of the text."""
        mentions_to_keep = (
            mention for mention in mentions if self.kinds is None or mention.kind in self.kinds
        )
        unique = {
            Mention(mention.start, mention.end, mention.text, self.kind or mention.kind)
            for mention in mentions_to_keep
        }
        return tuple(sorted(unique, key=lambda mention: (mention.start, mention.end, mention.kind)))


def mention_at(
    text: str, start: object, end: object, kind: str, where: str, annotation: str | None = None
) -> Mention:
    """Return the mention at these offsets. Raise DataError if the offsets are outside the text, or
    if the text there differs from `annotation`."""
    for name, value in (("start", start), ("end", end)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise DataError(f"{where}: {name} must be a whole number, found {type(value).__name__}")
    assert isinstance(start, int)
    assert isinstance(end, int)
    if not 0 <= start < end <= len(text):
        raise DataError(
            f"{where}: a mention from {start} to {end} is outside a text of {len(text)} characters"
        )
    if not kind:
        raise DataError(f"{where}: the mention from {start} to {end} has no kind")
    span = text[start:end]
    if annotation is not None and annotation != span:
        raise DataError(
            f"{where}: the text of the mention from {start} to {end} differs from the text there"
        )
    if span != span.strip():
        raise DataError(f"{where}: the mention from {start} to {end} begins or ends with a blank")
    return Mention(start, end, span, kind)


def kinds_of(mentions: Iterable[Mention]) -> tuple[str, ...]:
    return tuple(sorted({mention.kind for mention in mentions}))


def check_only_mentions(example: Example) -> None:
    if set(example.labels) != set(kinds_of(example.mentions)):
        where = example.where or example.id
        raise DataError(
            f"{where}: has the labels {', '.join(example.labels)}, and this format holds only "
            "mentions; write jsonl"
        )
