"""What is asked of generated text, and how it comes back: plain values that tasks and engines share."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampling:
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of generated text for the prompt at `index`; `finish` is set on its last one."""

    index: int
    text: str
    finish: str | None = None
