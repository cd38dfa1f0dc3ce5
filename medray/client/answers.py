"""The answers of releases. Tasks build them, the service sends them, and the client reads them as
replies.

They need the standard library alone; pydantic validates dataclasses as they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

EXPLANATION_METHOD = "integrated gradients"
EXPLANATION_CAVEAT = (
    "Shares show what moves the model's output, and not whether the label is right. They depend on "
    "the neutral text that they start from."
)
_FOR, _AGAINST = "0,122,90", "200,50,30"  # green and red
_COLORS = ("10,103,168", "196,81,10", "0,122,90", "154,79,134", "138,109,0", "42,143,196")


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


@dataclass(frozen=True)
class DecisionAnswer:
    """The answer to a typed question. Its type is predicate, choice, score, or refusal where the
    release abstains; the other fields are those of its type."""

    type: str
    name: str | None
    answer_confidence: float  # the calibrated chance that the release's own answer is right
    threshold: float | None = None  # of answer_confidence
    probability: float | None = None  # that a predicate is true
    decision: bool | None = None  # whether the release takes a predicate for true
    choice: str | bool | None = None
    score: float | None = None  # the expected level
    confidence: float | None = None  # how concentrated the probabilities are
    probabilities: Mapping[str | bool, float] = field(default_factory=dict)
    citations: Citations | None = None  # if requested, and not abstained

    @property
    def abstained(self) -> bool:
        return self.type == "refusal"


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


@dataclass(frozen=True, kw_only=True)
class WordShare:
    """A word, `text[start:end]` of the text in the request, and its share in a label's output."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    start: int
    end: int
    text: str
    share: float = field(
        metadata={"description": "above zero the word speaks for the label, below against it"}
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class Explanation:
    """The shares of a text's words in the output for a label.

    They add up to `total`, the output for the text minus that for a neutral one, but for the
    completeness error. `error` is its size as a share of all shares without their signs."""

    text: str
    label: str
    words: tuple[WordShare, ...]
    total: float
    error: float
    method: str = EXPLANATION_METHOD
    caveat: str = EXPLANATION_CAVEAT

    def strongest(self, number: int = 5) -> list[WordShare]:
        """Return the words that speak most for the label, the strongest first."""
        return sorted(self.words, key=lambda word: -word.share)[:number]

    def __repr__(self) -> str:
        words = ", ".join(f"{word.text} {word.share:+.2f}" for word in self.strongest())
        return f"{self.label}: {words} (completeness error {self.error:.1%})"

    def _repr_html_(self) -> str:
        from html import escape  # its table of entities is large, and a client needs none

        most = max((abs(word.share) for word in self.words), default=0.0) or 1.0
        parts, at = [], 0
        for word in self.words:
            color, strength = _FOR if word.share > 0 else _AGAINST, abs(word.share) / most
            parts.append(escape(self.text[at : word.start]))
            parts.append(
                f'<mark title="{word.share:+.3f}" style="color:inherit;'
                f'background:rgba({color},{0.6 * strength:.2f})">{escape(word.text)}</mark>'
            )
            at = word.end
        note = (
            f"{self.label}; green speaks for it, red against; error {self.error:.1%}. {self.caveat}"
        )
        return (
            f"<p>{''.join(parts)}{escape(self.text[at:])}</p><p><small>{escape(note)}</small></p>"
        )


@dataclass(frozen=True, repr=False)
class MarkedText:
    """A text and its mentions, in the order of the text."""

    text: str
    mentions: tuple[MentionAnswer, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(sorted({mention.kind for mention in self.mentions}))

    def __repr__(self) -> str:
        if not self.mentions:
            return "no mentions"
        return "\n".join(
            f"{mention.kind}: {mention.text} ({mention.start} to {mention.end})"
            for mention in self.mentions
        )

    def _repr_html_(self) -> str:
        from html import escape

        parts, at = [], 0
        for mention in self.mentions:
            if mention.start < at:  # inside another one, which is marked already
                continue
            color = _COLORS[self.kinds.index(mention.kind) % len(_COLORS)]
            parts.append(escape(self.text[at : mention.start]))
            parts.append(
                f'<mark style="color:inherit;background:rgba({color},0.25)">'
                f"{escape(self.text[mention.start : mention.end])} "
                f"<small>{escape(mention.kind)}</small></mark>"
            )
            at = mention.end
        return f"<p>{''.join(parts)}{escape(self.text[at:])}</p>"


Answer = TypeVar("Answer", LabelAnswer, ChoiceAnswer, MentionsAnswer)


@dataclass(frozen=True)
class Reply(Generic[Answer]):
    release: str
    version: int
    predictions: tuple[Answer, ...]  # one per text, in order
    disclaimer: str | None = None


@dataclass(frozen=True)
class DecisionReply:
    release: str
    version: int
    answers: tuple[DecisionAnswer, ...]  # one per question, in order
    input_tokens: int
    disclaimer: str


@dataclass(frozen=True)
class ExplainReply:
    release: str
    version: int
    explanation: Explanation
    disclaimer: str


@dataclass(frozen=True)
class ChatReply:
    """A generated answer. Its text ends with the disclaimer, unless the service or the release
    turns that off."""

    release: str
    version: int
    text: str
    outcome: str
    disclaimer: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    citations: Citations | None = None  # if requested
    confidence: float | None = None  # the calibrated chance that the answer is right
    abstained: bool = False
