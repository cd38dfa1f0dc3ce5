"""A published classifier ready to answer: adapter merged into the base, proven by its probe, in the faster arithmetic."""

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from medray.engines.transformers import Engine
from medray.errors import ServingError
from medray.loading import PROBE_TEXTS, answers, prove
from medray.models.build import merge
from medray.registry import Release
from medray.serving.batching import Batcher, Turn
from medray.serving.schemas import Answer, AppOptions
from medray.tasks import classification

Precision = Literal["fp32", "bf16", "fp16"]
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_TIMED_TOKENS = 1024  # as in a busy moment, and little enough that a load takes about a second more


@dataclass(frozen=True)
class Head:
    """One version of a release. A request holds on to the one it began with, so a switch never mixes two models."""

    release: str
    version: int
    task: classification.Task
    batcher: Batcher
    precision: Precision

    def answer(self, request: classification.Request, *, max_tokens: int, deadline: float) -> list[Answer]:
        turn = Turn(self.batcher, max_tokens, deadline)
        response = self.task.respond(self.task.predict(turn, self.task.examples(request)))
        return [Answer(**dict(answer)) for answer in response.predictions]


def open_head(release: Release, options: AppOptions, thread: Executor, *, device: str) -> Head:
    """Hashes, base weights and probe are compared by the load; the merged model must answer the probe as well."""
    loaded = release.load(device=device)
    if not isinstance(loaded.task, classification.Task):
        raise ServingError(f"{release.reference}: its task {loaded.task.options.name!r} is not one that /v1/classify answers")
    built = replace(loaded.built, model=merge(loaded.built).eval())

    def engine(used: Precision) -> Engine:
        return Engine(built, precision=used, token_budget=options.token_budget, device=device)

    prove(release.folder(), loaded.manifest.probe, answers(loaded.task, engine("fp32")))
    used = options.precision if options.precision != "auto" else _faster(engine("fp32"), engine("bf16"), loaded.task)
    if used != "fp32":
        _cast_linears(built.model, _TYPES[used])
    batcher = Batcher(engine(used), thread, token_budget=options.token_budget, waiting_tokens=options.limits.waiting_tokens)
    return Head(release.record.name, release.record.version, loaded.task, batcher, used)


def _faster(fp32: Engine, bf16: Engine, task: classification.Task) -> Precision:
    """Both in turns, and the best time of each, so that a load beside live traffic judges them alike."""
    tokens = fp32.tokenizer(PROBE_TEXTS[0], split_special_tokens=True)["input_ids"]
    row = (tokens * (task.options.max_length // len(tokens) + 1))[: task.options.max_length // 2 or 1]
    rows = [row] * max(1, _TIMED_TOKENS // len(row))
    seconds = {"fp32": float("inf"), "bf16": float("inf")}
    for _ in range(3):
        for name, engine in (("fp32", fp32), ("bf16", bf16)):
            seconds[name] = min(seconds[name], _seconds(engine, rows))
    return "bf16" if seconds["bf16"] < seconds["fp32"] else "fp32"


def _seconds(engine: Engine, rows: Sequence[Sequence[int]]) -> float:
    start = time.perf_counter()
    engine.logits(rows)  # its result is on the CPU, so the device has finished
    return time.perf_counter() - start


def _cast_linears(model: Any, dtype: torch.dtype) -> None:
    """What autocast would do at every call, once: the same numbers, without 4 % of the time."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(dtype)
