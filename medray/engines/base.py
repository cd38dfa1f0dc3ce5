"""What runs a model for predictions. An engine knows models and no task."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from medray.generation import Chunk, Sampling


class Engine(Protocol):
    @property
    def tokenizer(self) -> Any: ...

    def logits(self, inputs: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """One row of head outputs per input, in the order of the inputs."""
        ...

    def token_logits(self, inputs: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
        """Outputs of a head that reads tokens: a matrix an input, a row a token."""
        ...

    def score(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Log-likelihoods in token ids: a row a prompt, a column a continuation."""
        ...

    def generate(self, prompts: Sequence[str] | Sequence[Sequence[int]], sampling: Sampling) -> Iterator[Chunk]:
        """Prompts as text, or as token ids, which are read as they are."""
        ...
