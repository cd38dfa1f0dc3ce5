"""The answers of releases. Tasks build them, the service sends them and the client reads them.

They need the standard library alone; pydantic validates dataclasses as they are."""

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Citation:
    """A sentence on which an answer rests: `text[start:end]` of the text in the request."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    start: int
    end: int
    text: str
    effect: float = field(
        metadata={"description": "by how much the log-odds of the answer fall without the sentence"}
    )


@dataclass(frozen=True, kw_only=True)
class Citations:
    """The sentences on which an answer rests, and how far they carry it. The probability of a
    generated answer is the mean one of its tokens."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    sentences: tuple[Citation, ...] = field(
        default=(),
        metadata={
            "description": "the strongest first; none where the answer rests on no single sentence"
        },
    )
    sufficiency: float | None = field(
        default=None,
        metadata={
            "description": (
                "probability of the answer minus that with these sentences and the questions of "
                "the text alone; 0 or less if they suffice"
            )
        },
    )
    comprehensiveness: float | None = field(
        default=None,
        metadata={
            "description": (
                "probability of the answer minus that without these sentences; the higher, the "
                "more the answer rests on them"
            )
        },
    )


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
                "calibrated probability of the label; for a multi-label task, of its least certain "
                "yes or no"
            )
        }
    )
    abstained: bool = field(
        default=False,
        metadata={"description": "true where the confidence is below the release's threshold"},
    )
    probabilities: dict[str, float]
    citations: Citations | None = field(
        default=None, metadata={"description": "set if the request asks for citations"}
    )


@dataclass(frozen=True, kw_only=True)
class ChoiceAnswer:
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    label: str | None = field(
        metadata={
            "description": "the most probable label; null where the generated text names none"
        }
    )
    labels: tuple[str, ...]
    confidence: float = field(metadata={"description": "calibrated probability of the label"})
    abstained: bool = field(
        default=False,
        metadata={"description": "true where the confidence is below the release's threshold"},
    )
    ranked: tuple[str, ...] = field(
        metadata={"description": "all labels, the most probable one first"}
    )
    probabilities: dict[str, float]
    citations: Citations | None = field(
        default=None, metadata={"description": "set if the request asks for citations"}
    )


@dataclass(frozen=True, kw_only=True)
class MentionAnswer:
    """`text[start:end]` of the text in the request."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    start: int
    end: int
    text: str
    kind: str
    confidence: float | None = field(
        metadata={
            "description": (
                "a tagger's probability of its least certain word; null for a language model"
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
        """Return the kinds of the mentions, without repeats."""
        return tuple(dict.fromkeys(mention.kind for mention in self.mentions))
