"""What is asked of generated text, and how it comes back: plain values that tasks and engines share."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampling:
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # tell each token's log-probability, and those of this many most probable ones


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token as the model found it, before temperature and top_p: its text, its log-probability, and the most probable ones."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of generated text for the prompt at `index`; `finish` (stop or length) is set on its last one."""

    index: int
    text: str
    finish: str | None = None
    num_tokens: int = 0  # that were made since the chunk before, an end of sequence and what a stop string cut off included
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
