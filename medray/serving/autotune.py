"""Which arithmetic is faster here, measured at every load with what the release will do."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np

from medray.engines.transformers import TransformersEngine
from medray.registry.loading import PROBE_TEXTS
from medray.serving.batching import Floats, tail_length
from medray.tasks.base.protocol import Task
from medray.types import Chunk, Engine, Example, Sampling

_TIMED_TOKENS = 1024  # as in a busy moment, and little enough that a load takes about a second more
_TIMED_ROWS, _TIMED_STEPS = 8, 4


@dataclass(frozen=True)
class Timing:
    """Seconds of a batch of one short text, and of one as in a busy moment, and how many tokens more that has."""

    small_s: float
    full_s: float
    tokens: int

    @property
    def overhead_tokens(self) -> int:
        per_token = max(self.full_s - self.small_s, 1e-9) / self.tokens
        return min(int(self.small_s / per_token), 1 << 20)


def generates(engine: TransformersEngine, task: Task) -> bool:
    """Whether the task's answers are generated: what counts then is a step, and whole answers would be a minute at every load."""
    counting = Counting(engine, 0)
    task.predict(counting, [Example("few", PROBE_TEXTS[2])])
    return counting.generates


def time_texts(engine: TransformersEngine, task: Task, thread: Executor) -> Timing:
    """The best of a few, so that a load beside live traffic judges as one on a quiet machine would."""
    few = [Example("few", PROBE_TEXTS[2])]
    head = task.head()
    counting = Counting(engine, len(head.labels) if head else 0)
    task.predict(counting, few)
    length, small = max(1, task.options.max_length // 2), counting.num_tokens
    text = " ".join([PROBE_TEXTS[2]] * max(1, length // len(engine.tokenizer(PROBE_TEXTS[2])["input_ids"])))
    many = [Example(str(number), text) for number in range(max(2, _TIMED_TOKENS // max(length, small)))]
    task.predict(counting, many)
    seconds = [tuple(thread.submit(_seconds, engine, task, rows).result() for rows in (few, many)) for _ in range(4)]
    tokens = max(1, counting.num_tokens - 2 * small)
    return Timing(min(small_s for small_s, _ in seconds), min(full_s for _, full_s in seconds), tokens)


def time_steps(engine: TransformersEngine, thread: Executor) -> float:
    """Seconds of a step of several rows, the best of a few."""
    return min(thread.submit(_step_seconds, engine).result() for _ in range(3))


def _seconds(engine: TransformersEngine, task: Task, examples: Sequence[Example]) -> float:
    start = time.perf_counter()
    task.predict(engine, examples)  # its result is on the CPU, so the device has finished
    return time.perf_counter() - start


def _step_seconds(engine: TransformersEngine) -> float:
    generation = engine.generation()
    generation.ends = set()  # no row may leave before it was timed
    prompt = engine.tokenizer(PROBE_TEXTS[0])["input_ids"]
    rows = [generation.row(number, prompt, Sampling(max_tokens=2 + _TIMED_STEPS)) for number in range(_TIMED_ROWS)]
    generation.join(rows)
    start = time.perf_counter()
    for _ in range(_TIMED_STEPS):
        generation.step()
    return (time.perf_counter() - start) / _TIMED_STEPS


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
