"""Values and protocols that many rooms share: examples, predictions, generated text, engines. They
hold no behavior."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = (
        None  # tell each token's log-probability, and those of this many most probable ones
    )


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token as the model found it, before temperature and top_p: its text, its log-probability,
    and the most probable ones."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of generated text for the prompt at `index`; `finish` (stop or length) is set on its
    last one."""

    index: int
    text: str
    finish: str | None = None
    # that were made since the chunk before, an end of sequence and what a stop string cut off
    # included
    num_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


def gather(chunks: Iterable[Chunk], num_prompts: int) -> list[Chunk]:
    """Whole texts, one chunk a prompt."""
    pieces: list[list[Chunk]] = [[] for _ in range(num_prompts)]
    for chunk in chunks:
        pieces[chunk.index].append(chunk)
    return [joined(index, of) for index, of in enumerate(pieces)]


def joined(index: int, chunks: Iterable[Chunk]) -> Chunk:
    found = tuple(chunks)
    return Chunk(
        index,
        "".join(chunk.text for chunk in found),
        found[-1].finish if found else None,
        sum(chunk.num_tokens for chunk in found),
        tuple(logprob for chunk in found for logprob in chunk.logprobs),
    )


class Engine(Protocol):
    @property
    def tokenizer(self) -> Any: ...

    def logits(self, inputs: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """One row of head outputs per input, in the order of the inputs."""
        ...

    def token_logits(self, inputs: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
        """Outputs of a head that reads tokens: a matrix an input, a row a token."""
        ...

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float32]:
        """Log-likelihoods in token ids: a row a prompt, a column a continuation."""
        ...

    def generate(
        self, prompts: Sequence[str] | Sequence[Sequence[int]], sampling: Sampling
    ) -> Iterator[Chunk]:
        """Prompts as text, or as token ids, which are read as they are."""
        ...


Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Mention:
    """A span of a text that names something: `text[start:end]`, in characters."""

    start: int
    end: int
    text: str
    kind: str
    confidence: float | None = None  # of one that a model found


@dataclass(frozen=True, slots=True)
class Message:
    """What one side of a conversation says."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One raw record. Everything that is neither text nor label is metadata."""

    id: str
    text: str
    labels: tuple[str, ...] = ()
    split: str | None = None  # as given on disk, where the data says
    metadata: Mapping[str, str] = field(default_factory=dict)
    where: str = ""  # file:line, for messages
    mentions: tuple[Mention, ...] = ()  # in the order of the text; their kinds are its labels
    turns: tuple[
        Message, ...
    ] = ()  # of a conversation, up to what is to be answered; without any the text is the one turn
    response: str = ""  # the answer that is right, in words

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> "Example":
        """From what `asdict` made, after JSON."""
        mentions = tuple(Mention(**mention) for mention in held["mentions"])
        turns = tuple(Message(**turn) for turn in held["turns"])
        return cls(
            **{**held, "labels": tuple(held["labels"]), "mentions": mentions, "turns": turns}
        )

    def without_answer(self) -> "Example":
        """Without the answer that is right."""
        return replace(self, labels=(), mentions=(), response="")


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row as a model reads it. A long text may give several (windows); they share the
    row_id."""

    row_id: str
    tokens: tuple[int, ...]
    target: tuple[
        int, ...
    ]  # what the task's loss compares with: a class, the active classes, or a position
    truncated: bool = False


DISCLAIMER = "Research software, not a medical device: no diagnosis, no treatment decision."


Needs = Literal["head", "token head", "language model"]


@dataclass(frozen=True, slots=True)
class Head:
    """The output layer that a task asks of a model."""

    labels: tuple[str, ...]
    multi_label: bool = False
    per_token: bool = False  # an output for each token instead of one for the row


@dataclass(frozen=True, slots=True)
class Prediction:
    row_id: str
    labels: tuple[str, ...]  # one, or for multi-label any number
    probabilities: tuple[float, ...]  # in the order of the task's labels
    confidence: float | None = None  # once calibrated: of the answer
    abstained: bool = False  # less sure than the release's threshold
    text: str = ""  # what was generated
    mentions: tuple[Mention, ...] = ()
    figures: Mapping[str, float] = field(
        default_factory=dict
    )  # what a row adds to figures, once known; kept where the text is not

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> "Prediction":
        """From what `asdict` made, after JSON."""
        mentions = tuple(Mention(**mention) for mention in held.get("mentions", ()))
        return cls(
            **{
                **held,
                "labels": tuple(held["labels"]),
                "probabilities": tuple(held["probabilities"]),
                "mentions": mentions,
            }
        )
