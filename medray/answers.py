"""What the service answers per text, as the tasks write it, HTTP carries it and the client reads
it.

Dataclasses of the standard library, so that the client imports no pydantic; pydantic takes them as
they are."""

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class LabelAnswer:
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    label: str | None = field(
        metadata={"description": "the most probable label; null for a multi-label task"}
    )
    labels: tuple[str, ...]
    confidence: float = field(
        metadata={
            "description": (
                "calibrated probability of the label; multi-label: of the least certain of its yes "
                "and no answers"
            )
        }
    )
    abstained: bool = field(
        default=False,
        metadata={"description": "less sure than the release's threshold: not to be relied on"},
    )
    probabilities: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ChoiceAnswer:
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    label: str | None = field(
        metadata={"description": "the most probable label; null where generated text held none"}
    )
    labels: tuple[str, ...]
    confidence: float = field(metadata={"description": "calibrated probability of the label"})
    abstained: bool = field(
        default=False,
        metadata={"description": "less sure than the release's threshold: not to be relied on"},
    )
    ranked: tuple[str, ...] = field(
        metadata={"description": "all labels, the most probable one first"}
    )
    probabilities: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class MentionAnswer:
    """`text[start:end]` of the text that was sent."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    start: int
    end: int
    text: str
    kind: str
    confidence: float | None = field(
        metadata={
            "description": (
                "of a tagger: how sure its least sure word is; null where a language model wrote it"
            )
        }
    )


@dataclass(frozen=True, kw_only=True)
class MentionsAnswer:
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    mentions: tuple[MentionAnswer, ...] = field(
        metadata={"description": "in the order of the text"}
    )

    @property
    def labels(self) -> tuple[str, ...]:
        """The kinds that the text has mentions of."""
        return tuple(dict.fromkeys(mention.kind for mention in self.mentions))
