"""What ingress and replicas say to each other about generated text: plain values, one after another. Knows neither Ray nor torch."""

from dataclasses import dataclass

from medray.data.base import Message
from medray.generation import Sampling, TokenLogprob
from medray.tasks.base import Outcome

SEAM = "\n\n"  # between an answer and the disclaimer at its end


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation to go on with."""

    messages: tuple[Message, ...]
    sampling: Sampling
    max_tokens: int | None  # the task's own number where nobody said
    whole: bool  # the answer in one piece: pieces that nobody looks at cost a message each


@dataclass(frozen=True, slots=True)
class Begun:
    """Who answers: before the first piece, also of an answer in one piece, which so can be asked for again until it is there."""

    release: str
    version: int
    prompt_tokens: int
    disclaimer: str
    ends_with_disclaimer: bool = True
    first_token_s: float | None = None  # from the replica's being asked


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of the answer; on the last one, why it ended and what it was."""

    text: str
    num_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Described:
    """What somebody who talks to a release should know of it."""

    release: str
    version: int
    system: str | None = None  # None: it does not talk
    disclaimer: str | None = None
