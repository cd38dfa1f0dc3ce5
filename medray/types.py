"""Values and protocols that many packages share: examples, predictions, generated text, engines."""

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
    # Return each token's log-probability, and those of this many most probable tokens.
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's text and log-probability, before temperature and top_p, and the most probable
    tokens in its place."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of generated text for the prompt at `index`. `finish` (stop or length) is set on the
    prompt's last chunk."""

    index: int
    text: str
    finish: str | None = None
    # Tokens generated since the previous chunk. They include an end of sequence and text that a
    # stop string cut off.
    num_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


def gather(chunks: Iterable[Chunk], num_prompts: int) -> list[Chunk]:
    """Join the chunks of each prompt: one chunk per prompt."""
    by_prompt: list[list[Chunk]] = [[] for _ in range(num_prompts)]
    for chunk in chunks:
        by_prompt[chunk.index].append(chunk)
    return [join_chunks(index, pieces) for index, pieces in enumerate(by_prompt)]


def join_chunks(index: int, chunks: Iterable[Chunk]) -> Chunk:
    pieces = tuple(chunks)
    return Chunk(
        index,
        "".join(chunk.text for chunk in pieces),
        pieces[-1].finish if pieces else None,
        sum(chunk.num_tokens for chunk in pieces),
        tuple(logprob for chunk in pieces for logprob in chunk.logprobs),
    )


@dataclass(frozen=True, slots=True)
class Branch:
    """Tokens that follow a prompt, such as a question, and the continuations to score after
    them. They may be empty."""

    tokens: TokenIds
    continuations: tuple[TokenIds, ...]


class Engine(Protocol):
    @property
    def tokenizer(self) -> Any: ...

    def logits(self, inputs: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Return one row of head outputs per input, in the order of the inputs."""
        ...

    def token_logits(self, inputs: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
        """Return the outputs of a head per token: one matrix per input, one row per token."""
        ...

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float32]:
        """Return log-likelihoods: one row per prompt, one column per continuation."""
        ...

    def score_branches(
        self, prompts: Sequence[Sequence[int]], branches: Sequence[Sequence[Branch]]
    ) -> list[list[npt.NDArray[np.float32]]]:
        """Return log-likelihoods: per prompt and branch, one number per continuation. No branch
        and no continuation attends to another."""
        ...

    def generate(
        self, prompts: Sequence[str] | Sequence[Sequence[int]], sampling: Sampling
    ) -> Iterator[Chunk]:
        """Generate a text per prompt. A prompt is a text, or token ids, which get no template."""
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
    confidence: float | None = None  # set where a model predicted it


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


QuestionKind = Literal["predicate", "choice", "score"]
PREDICATE_VALUES = ("true", "false")  # the options of a predicate, in this order
DecisionFormat = Literal["decisions", "systemone"]  # of a request with typed questions


@dataclass(frozen=True, slots=True)
class QuestionOption:
    """A possible answer to a question."""

    value: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A typed question about a text. The options of a predicate are `PREDICATE_VALUES`; those of a
    score are its levels, low to high."""

    name: str
    kind: QuestionKind
    instructions: str
    options: tuple[QuestionOption, ...]

    @property
    def values(self) -> tuple[str, ...]:
        return tuple(option.value for option in self.options)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Question":
        """Build a question from the output of `asdict`, after a round trip through JSON."""
        options = tuple(QuestionOption(**option) for option in fields["options"])
        return cls(**{**fields, "options": options})


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """The answer to a question: a probability per option, in the order of its options."""

    name: str
    kind: QuestionKind
    values: tuple[str, ...]
    probabilities: tuple[float, ...]
    confidence: float | None = None  # of the chosen option, set by calibration
    abstained: bool = False  # the confidence is below the question's threshold
    threshold: float | None = None
    choice: str = ""  # the option that thresholds of the task chose; "": the most probable one
    is_refusal: bool = False  # a service gave no answer; the probabilities are equal ones

    @property
    def value(self) -> str:
        """Return the chosen option: the most probable one, the first of equal ones, unless
        thresholds of the task chose another."""
        return self.choice or self.values[self.probabilities.index(max(self.probabilities))]

    @property
    def score(self) -> float:
        """Return the expected position among the options, counted from 0: the level of a score."""
        return sum(place * share for place, share in enumerate(self.probabilities))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "QuestionAnswer":
        """Build an answer from the output of `asdict`, after a round trip through JSON."""
        values, probabilities = tuple(fields["values"]), tuple(fields["probabilities"])
        return cls(**{**fields, "values": values, "probabilities": probabilities})


@dataclass(frozen=True, slots=True)
class Example:
    """One raw record. A field that is neither text nor label is metadata."""

    id: str
    text: str
    labels: tuple[str, ...] = ()
    split: str | None = None  # as the data set gives it
    metadata: Mapping[str, str] = field(default_factory=dict)
    where: str = ""  # file:line, for error messages
    mentions: tuple[Mention, ...] = ()  # in text order; their kinds are the labels
    # A conversation up to its last user turn. Without turns, the text is the only turn.
    turns: tuple[Message, ...] = ()
    response: str = ""  # the reference answer of a text-generation task
    questions: tuple[Question, ...] = ()
    # Per question, the share of each option in the right answer; empty where it is not known.
    answers: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Example":
        """Build an example from the output of `asdict`, after a round trip through JSON."""
        mentions = tuple(Mention(**mention) for mention in fields["mentions"])
        turns = tuple(Message(**turn) for turn in fields["turns"])
        questions = tuple(map(Question.from_dict, fields.get("questions", ())))
        answers = tuple(map(tuple, fields.get("answers", ())))
        return cls(
            **{
                **fields,
                "labels": tuple(fields["labels"]),
                "mentions": mentions,
                "turns": turns,
                "questions": questions,
                "answers": answers,
            }
        )

    def without_answer(self) -> "Example":
        """Return a copy without its labels, mentions and right answers."""
        return replace(self, labels=(), mentions=(), response="", answers=())


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row of token ids. A long text may give several rows (windows), which share a row_id."""

    row_id: str
    tokens: tuple[int, ...]
    target: TokenIds  # for the task's loss: a class, the active classes, or a position
    truncated: bool = False
    # Tokens of the whole text before truncation, as the audit counts them; None if not counted.
    text_length: int | None = None
    # Of a tagged text: the first and last character of each token with a tag, one after another.
    offsets: tuple[int, ...] | None = None


DISCLAIMER = "Research software, not a medical device: no diagnosis, no treatment decision."


# The last one is a task that an encoder does with a head, and a decoder without one.
Needs = Literal["head", "token head", "language model", "head or language model"]
Pooling = Literal["token", "mean"]


@dataclass(frozen=True, slots=True)
class Head:
    """The output layer that a task requires of a model."""

    labels: tuple[str, ...]
    multi_label: bool = False
    per_token: bool = False  # one output per token instead of one per row
    # What a head per row reads: the token that the architecture reads, or the mean of all tokens.
    pooling: Pooling = "token"


@dataclass(frozen=True, slots=True)
class Prediction:
    row_id: str
    labels: tuple[str, ...]  # one; any number for a multi-label task
    probabilities: tuple[float, ...]  # in the order of the task's labels
    confidence: float | None = None  # of the answer, set by calibration
    abstained: bool = False  # the confidence is below the release's threshold
    text: str = ""  # generated text
    mentions: tuple[Mention, ...] = ()
    # The row's share of the metrics. It is kept where the text is not.
    figures: Mapping[str, float] = field(default_factory=dict)
    answers: tuple[QuestionAnswer, ...] = ()  # one per question of the example

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Prediction":
        """Build a prediction from the output of `asdict`, after a round trip through JSON."""
        mentions = tuple(Mention(**mention) for mention in fields.get("mentions", ()))
        answers = tuple(map(QuestionAnswer.from_dict, fields.get("answers", ())))
        return cls(
            **{
                **fields,
                "labels": tuple(fields["labels"]),
                "probabilities": tuple(fields["probabilities"]),
                "mentions": mentions,
                "answers": answers,
            }
        )
