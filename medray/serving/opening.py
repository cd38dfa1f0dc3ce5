"""Open a release for serving: load it, merge it, check its probe, and choose the faster precision.

On a CPU, every load measures which precision is faster, with the work that the release will do. A
GPU's architecture decides it.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from medray.config.trial import Precision
from medray.engines.base import tail_length, tree_length
from medray.engines.transformers import TransformersEngine
from medray.errors import ServingError
from medray.models.batch import evaluation_tokens
from medray.models.precision import cast, cast_within, fast_precision, fastest
from medray.registry.loading import LoadedRelease, read_cloud
from medray.registry.probe import PROBE_TEXTS
from medray.registry.release import Release
from medray.serving.chat import ChatModel
from medray.serving.schemas import AppOptions
from medray.serving.streams import Streams
from medray.serving.text_model import Batcher, TextModel
from medray.tasks.base.protocol import Chatting, QuestionTask, Task
from medray.tasks.base.route import Served, served_tasks
from medray.types import Branch, Chunk, Engine, Example, Floats32, Sampling

log = logging.getLogger(__name__)
Measure = TypeVar("Measure")
# A busy batch, but small enough that timing takes about a second. A GPU is not busy with fewer
# tokens: it would wait for the launches of its kernels.
_TIMED_TOKENS = {"cpu": 1024, "cuda": 16_384}
_TIMED_ROWS, _TIMED_STEPS = 8, 4


@dataclass(frozen=True)
class _Opening:
    """A loaded release whose precision is not chosen yet."""

    release: LoadedRelease
    options: AppOptions
    thread: Executor

    def tokens(self, name: str) -> int:
        """Return a budget of the options. One that they leave open follows a GPU's memory."""
        budget: int = getattr(self.options, name)
        if name in self.options.model_fields_set:
            return budget
        return evaluation_tokens(self.release.model.network, budget, self.release.device)

    def engine(self, precision: Precision) -> TransformersEngine:
        budget = self.tokens("token_budget")
        engine = self.release.in_precision(precision, token_budget=budget).engine
        assert isinstance(engine, TransformersEngine)
        return engine

    @property
    def candidates(self) -> list[Precision]:
        return _candidates(self.options, self.release.device)

    def time(self, measure: Callable[[TransformersEngine], Measure]) -> dict[Precision, Measure]:
        """Return the measure of each candidate."""
        measures = {}
        for candidate in self.candidates:
            with self._cast_within(candidate):
                measures[candidate] = measure(self.engine(candidate))
        return measures

    def _cast_within(self, precision: Precision) -> AbstractContextManager[None]:
        # 4-bit layers follow autocast themselves.
        return (
            cast_within(self.release.model.network, self.release.model.family, precision)
            if self.release.is_merged
            else nullcontext()
        )

    def with_precision(
        self, precision: Precision
    ) -> tuple[LoadedRelease, TransformersEngine, Streams]:
        if self.release.is_merged:
            cast(self.release.model.network, self.release.model.family, precision)
        engine, options = self.engine(precision), self.options
        streams = Streams(
            engine.generation,
            self.thread,
            token_budget=self.tokens("generation_tokens"),
            waiting_tokens=options.limits.waiting_tokens,
        )
        return replace(self.release, engine=engine, precision=precision), engine, streams


def _candidates(options: AppOptions, device: str) -> list[Precision]:
    """Return the precisions that the options allow and this device may compute faster."""
    if options.precision != "auto":
        return [options.precision]
    return ["fp32", "bf16"] if device == "cpu" else [fast_precision(device)]


def open_model(
    release: Release, options: AppOptions, thread: Executor, *, device: str
) -> TextModel | ChatModel:
    """Load and merge a release in a temporary thread, then time it in the thread that will compute.

    Each thread that computes keeps its OpenMP workers until it ends. With more workers than cores
    they sleep between layers: a second such thread took the first from 1.9 to 1.4 of two cores."""
    precision = _candidates(options, device)[0]
    with ThreadPoolExecutor(1, "load") as loader:
        model = loader.submit(
            partial(release.load, precision=precision, device=device, merge=True)
        ).result()
    opening = _Opening(model, options, thread)
    if isinstance(model.task, Chatting):
        return _open_chat_model(opening)
    if isinstance(model.task, Served | QuestionTask):
        return _open_text_model(opening)
    raise ServingError(
        f"{model.reference}: its task {model.task.options.name!r} has no route; serve a release "
        f"that talks, or one of these tasks: {', '.join(served_tasks())}"
    )


def _open_chat_model(opening: _Opening) -> ChatModel:
    release, engine, streams = opening.with_precision(_faster_steps(opening))
    window = (
        getattr(release.model.network.config, "max_position_embeddings", None)
        or engine.tokenizer.model_max_length
    )
    batcher = _batcher(engine, opening)
    return ChatModel.open(release, streams, window, batcher)


def _faster_steps(opening: _Opening) -> Precision:
    if len(opening.candidates) == 1:
        return opening.candidates[0]
    seconds = opening.time(lambda engine: time_steps(engine, opening.thread))
    precision = fastest(seconds)
    log.info(
        "%s: precision %s; seconds per step: %s", opening.release.reference, precision, seconds
    )
    return precision


def _open_text_model(opening: _Opening) -> TextModel:
    options, overhead, task = opening.options, 1, opening.release.task
    if opening.release.model.head is None and generates(opening.engine("fp32"), task):
        precision = _faster_steps(opening)
    else:
        timings = opening.time(lambda engine: time_texts(engine, task, opening.thread))
        precision = fastest({name: timing.full_s for name, timing in timings.items()})
        overhead = timings[precision].overhead_tokens
        log.info(
            "%s: precision %s; a batch has a fixed cost of %d tokens; %s",
            opening.release.reference,
            precision,
            overhead,
            timings,
        )
    release, engine, streams = opening.with_precision(precision)
    cloud = read_cloud(release.folder) if options.flag_unlike_training else None
    outputs = engine.logits_and_embeddings if cloud else None
    batcher = _batcher(engine, opening, overhead_tokens=overhead, outputs=outputs)
    return TextModel(release, batcher, streams, cloud)


def _batcher(
    engine: TransformersEngine,
    opening: _Opening,
    *,
    overhead_tokens: int = 1,
    outputs: Callable[[Sequence[Sequence[int]]], Floats32] | None = None,
) -> Batcher:
    return Batcher(
        engine,
        opening.thread,
        token_budget=engine.token_budget,
        waiting_tokens=opening.options.limits.waiting_tokens,
        overhead_tokens=overhead_tokens,
        outputs=outputs,
    )


@dataclass(frozen=True)
class Timing:
    """Seconds of a batch of one short text, seconds of a full batch, and the difference in
    tokens."""

    small_s: float
    full_s: float
    tokens: int

    @property
    def overhead_tokens(self) -> int:
        per_token = max(self.full_s - self.small_s, 1e-9) / self.tokens
        return min(int(self.small_s / per_token), 1 << 20)


def generates(engine: TransformersEngine, task: Task) -> bool:
    """Return whether the task generates its answers. Then a step is timed, because whole answers
    would add a minute to every load."""
    counting = Counting(engine, 0)
    task.predict(counting, [Example("few", PROBE_TEXTS[2])])
    return counting.generates


def time_texts(engine: TransformersEngine, task: Task, thread: Executor) -> Timing:
    """Time a short and a full batch. The best of four runs counts, so that live traffic beside the
    load changes little."""
    device = engine.device.type
    full = (
        _TIMED_TOKENS[device]
        if device == "cpu"
        else min(engine.token_budget, _TIMED_TOKENS[device])
    )
    few = [Example("few", PROBE_TEXTS[2])]
    head = task.head()
    counting = Counting(engine, len(head.labels) if head else 0)
    task.predict(counting, few)
    length, small = max(1, task.options.max_length // 2), counting.num_tokens
    text = " ".join(
        [PROBE_TEXTS[2]] * max(1, length // len(engine.tokenizer(PROBE_TEXTS[2])["input_ids"]))
    )
    many = [Example(str(number), text) for number in range(max(2, full // max(length, small)))]
    task.predict(counting, many)
    seconds = [
        tuple(thread.submit(_seconds, engine, task, rows).result() for rows in (few, many))
        for _ in range(4)
    ]
    tokens = max(1, counting.num_tokens - 2 * small)
    return Timing(
        min(small_s for small_s, _ in seconds), min(full_s for _, full_s in seconds), tokens
    )


def time_steps(engine: TransformersEngine, thread: Executor) -> float:
    """Return the seconds of a step of several rows, the best of three."""
    return min(thread.submit(_step_seconds, engine).result() for _ in range(3))


def _seconds(engine: TransformersEngine, task: Task, examples: Sequence[Example]) -> float:
    start = time.perf_counter()
    task.predict(engine, examples)  # the result is on the CPU, so the device is done
    return time.perf_counter() - start


def _step_seconds(engine: TransformersEngine) -> float:
    generation = engine.generation()
    generation.ends = set()  # keep all rows until the end
    prompt = engine.tokenizer(PROBE_TEXTS[0])["input_ids"]
    rows = [
        generation.row(number, prompt, Sampling(max_tokens=2 + _TIMED_STEPS))
        for number in range(_TIMED_ROWS)
    ]
    generation.join(rows)
    start = time.perf_counter()
    for _ in range(_TIMED_STEPS):
        generation.step()
    return (time.perf_counter() - start) / _TIMED_STEPS


@dataclass
class Counting:
    """An engine that returns zeros without computing, and counts the tokens it receives."""

    engine: Engine
    num_labels: int
    num_tokens: int = 0
    generates: bool = False

    @property
    def tokenizer(self) -> Any:
        return self.engine.tokenizer

    def logits(self, inputs: Sequence[Sequence[int]]) -> Floats32:
        self.num_tokens += sum(map(len, inputs))
        return np.zeros((len(inputs), self.num_labels), dtype=np.float32)

    def token_logits(self, inputs: Sequence[Sequence[int]]) -> list[Floats32]:
        self.num_tokens += sum(map(len, inputs))
        return [np.zeros((len(row), self.num_labels), dtype=np.float32) for row in inputs]

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> Floats32:
        self.num_tokens += sum(map(len, prompts)) + len(prompts) * tail_length(continuations)
        return np.zeros((len(prompts), len(continuations)), dtype=np.float32)

    def score_branches(
        self, prompts: Sequence[Sequence[int]], branches: Sequence[Sequence[Branch]]
    ) -> list[list[Floats32]]:
        self.num_tokens += sum(map(tree_length, prompts, branches))
        return [
            [np.zeros(len(branch.continuations), dtype=np.float32) for branch in own]
            for own in branches
        ]

    def generate(
        self, prompts: Sequence[str] | Sequence[Sequence[int]], sampling: Sampling
    ) -> Iterator[Chunk]:
        self.num_tokens += sum(len(prompt) + sampling.max_tokens for prompt in prompts)
        self.generates = True
        return iter(())
