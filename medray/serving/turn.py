"""The engine as a task sees it while it serves a request, and while it is asked how much it would read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medray.engines.base import Engine
from medray.generation import Chunk, Sampling
from medray.selection.nearness import Cloud
from medray.serving.batching import Batcher, Floats, TooManyTokensError, tail_length
from medray.serving.streams import Streams


@dataclass(frozen=True)
class Turn:
    """The engine as one request sees it: its rows go with those of others, within its limit and time."""

    batcher: Batcher
    streams: Streams
    max_tokens: int
    deadline: float
    cloud: Cloud | None = None  # of embeddings, where the batcher's engine makes them beside its outputs
    distances: list[float] = field(default_factory=list)  # of the rows that were asked, in their order

    @property
    def tokenizer(self) -> Any:
        return self.batcher.engine.tokenizer

    def logits(self, inputs: Sequence[Sequence[int]]) -> Floats:
        self._check(sum(map(len, inputs)))
        found = self.batcher.logits(inputs, self.deadline)
        if self.cloud is None:
            return found
        outputs, embeddings = np.split(found, [-len(self.cloud.centre)], axis=1)
        self.distances.extend(self.cloud.distances(embeddings).tolist())
        return outputs

    def token_logits(self, inputs: Sequence[Sequence[int]]) -> list[Floats]:
        self._check(sum(map(len, inputs)))
        return self.batcher.token_logits(inputs, self.deadline)

    def score(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> Floats:
        self._check(sum(map(len, prompts)) + len(prompts) * tail_length(continuations))
        return self.batcher.score(prompts, tuple(map(tuple, continuations)), self.deadline)

    def generate(self, prompts: Sequence[str] | Sequence[Sequence[int]], sampling: Sampling) -> Iterator[Chunk]:
        rows = [self.tokenizer(prompt, split_special_tokens=True)["input_ids"] if isinstance(prompt, str) else prompt for prompt in prompts]
        self._check(sum(len(row) + sampling.max_tokens for row in rows))
        return iter(self.streams.collect(rows, sampling, self.deadline))

    def _check(self, tokens: int) -> None:
        if tokens > self.max_tokens:
            raise TooManyTokensError(f"{tokens} tokens in one request, at most {self.max_tokens} are read")


@dataclass
class Counting:
    """An engine that answers zeros without computing, and tells how many tokens it was asked to read."""

    engine: Engine
    num_labels: int
    num_tokens: int = 0
    generates: bool = False

    @property
    def tokenizer(self) -> Any:
        return self.engine.tokenizer

    def logits(self, inputs: Sequence[Sequence[int]]) -> Floats:
        self.num_tokens += sum(map(len, inputs))
        return np.zeros((len(inputs), self.num_labels), dtype=np.float32)

    def token_logits(self, inputs: Sequence[Sequence[int]]) -> list[Floats]:
        self.num_tokens += sum(map(len, inputs))
        return [np.zeros((len(row), self.num_labels), dtype=np.float32) for row in inputs]

    def score(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> Floats:
        self.num_tokens += sum(map(len, prompts)) + len(prompts) * tail_length(continuations)
        return np.zeros((len(prompts), len(continuations)), dtype=np.float32)

    def generate(self, prompts: Sequence[str] | Sequence[Sequence[int]], sampling: Sampling) -> Iterator[Chunk]:
        self.num_tokens += sum(len(prompt) + sampling.max_tokens for prompt in prompts)
        self.generates = True
        return iter(())
