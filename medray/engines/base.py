"""What runs a model for predictions. An engine knows models and no task."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


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


class Engine(Protocol):
    @property
    def tokenizer(self) -> Any: ...

    def logits(self, inputs: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """One row of head outputs per input, in the order of the inputs."""
        ...

    def score(self, prompt: str, continuations: Sequence[str]) -> npt.NDArray[np.float32]:
        """The log-likelihood of each continuation."""
        ...

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> Iterator[Chunk]: ...
