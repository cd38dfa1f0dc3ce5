"""Predictions of the candidates of a final test on rows without labels: finalists and base
models."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from medray.config.load import public_settings
from medray.config.trial import TrialConfig
from medray.evaluation.leaderboard import Entry
from medray.models.imports import without_garbage_collection
from medray.registry.predictions import read_predictions
from medray.storage import checkpoint
from medray.study.placement import Placement
from medray.tasks.base.protocol import Task, restore, task_options
from medray.types import Engine, Example, Prediction

if TYPE_CHECKING:
    from medray.engines.transformers import TransformersEngine
    from medray.registry.loading import LoadedRelease

log = logging.getLogger(__name__)


class Caller(Protocol):
    """Calls a function once per tuple of arguments, each in a process with the resources of a
    worker, and returns the results in order."""

    def __call__(
        self,
        function: Callable[..., Any],
        arguments: Sequence[tuple[Any, ...]],
        placement: Placement,
    ) -> list[Any]: ...


@dataclass(frozen=True)
class Candidate:
    """One candidate's predictions, made before the test labels are read."""

    entry: Entry
    task: Task
    validation: list[Prediction]
    test: list[Prediction]
    ms_per_row: float
    merged: list[Prediction] | None = None  # of the merged model, on validation rows
    samples: tuple[str, ...] = ()  # answers to the user's prompts


@dataclass(frozen=True)
class Predictions:
    """The result of a process that loads a checkpoint or a base model."""

    task: Task
    test: list[Prediction]
    seconds: float
    merged: list[Prediction] | None  # on validation rows, where a merge is not exact
    samples: tuple[str, ...] = ()


def finalist_candidates(
    entries: Sequence[Entry],
    rows: Sequence[Example],
    validation: Sequence[Example],
    placement: Placement,
    call: Caller,
) -> list[Candidate]:
    results = call(
        predict,
        [
            (entry.checkpoint, rows, validation, placement.threads, placement.gpus)
            for entry in entries
        ],
        placement,
    )
    candidates = []
    for entry, result in zip(entries, results, strict=True):
        candidates.append(
            Candidate(
                entry,
                result.task,
                read_predictions(Path(str(entry.checkpoint))),
                result.test,
                _ms_per_row(result, rows),
                result.merged,
                result.samples,
            )
        )
    return candidates


def _ms_per_row(result: Predictions, rows: Sequence[Example]) -> float:
    return 1000 * result.seconds / len(rows)


def predict(
    checkpoint: str,
    rows: Sequence[Example],
    validation: Sequence[Example],
    num_threads: int,
    num_gpus: float,
) -> Predictions:
    """Load a checkpoint and return its predictions, and those of the plain model that it merges
    into."""
    with without_garbage_collection():
        import torch

        from medray.models.device import reserved_device
        from medray.registry.loading import load

    torch.set_num_threads(num_threads)
    release = load(checkpoint, device=reserved_device(num_gpus))
    predictions, seconds = predict_with_time(release.task, release.engine, rows)
    samples = _answer_samples(release.task, release.engine)
    is_exact = release.manifest.quantization == "none"
    return Predictions(
        release.task,
        predictions,
        seconds,
        None if is_exact else _predict_merged(release, validation),
        samples,
    )


def _predict_merged(
    release: "LoadedRelease", validation: Sequence[Example]
) -> list[Prediction] | None:
    """Return the predictions of the merged model in the precision of the training, or None where
    it does not fit into memory. Such a release serves unmerged."""
    from medray.models.device import is_out_of_memory

    try:
        return release.task.predict(release.merge(release.precision).engine, validation)
    except (RuntimeError, MemoryError) as err:
        if not is_out_of_memory(err):
            raise
        log.warning(
            "%s: the merged model does not fit into memory, so its %s is not measured and the "
            "release serves unmerged; use a GPU with more memory to measure it",
            release.reference,
            release.task.options.metric,
        )
        return None


def predict_with_time(
    task: Task, engine: Engine, rows: Sequence[Example]
) -> tuple[list[Prediction], float]:
    """Return predictions and their seconds. A first row, which still reads weights, runs before
    the clock starts."""
    task.predict(engine, rows[:1])
    start = time.perf_counter()
    predictions = task.predict(engine, rows)
    return predictions, time.perf_counter() - start


def with_precision_of(finalists: Sequence[Entry], config: TrialConfig, base: int) -> TrialConfig:
    """Return a base model's trial with the precision of its finalist, so that the two differ in
    training alone."""
    for entry in finalists:
        if entry.base == base and entry.checkpoint:
            precision = checkpoint.read(Path(entry.checkpoint)).precision.actual
            return config.model_copy(
                update={"model": config.model.model_copy(update={"precision": precision})}
            )
    return config


def _answer_samples(task: Task, engine: Engine) -> tuple[str, ...]:
    samples = task_options(task.options).samples()
    return tuple(prediction.text for prediction in task.predict(engine, samples)) if samples else ()


def base_model_candidates(
    bases: Sequence[TrialConfig],
    task: Task,
    rows: Sequence[Example],
    validation: Sequence[Example],
    placement: Placement,
    call: Caller,
) -> list[Candidate]:
    """Return each base model before training, with its own settings of the task."""
    state = task.state()
    configs = [
        config.model_dump(mode="json") | {"data": public_settings(config.data)} for config in bases
    ]
    results = call(
        predict_base_model,
        [
            (config, state, rows, validation, placement.threads, placement.gpus)
            for config in configs
        ],
        placement,
    )
    candidates = []
    for config, (result, on_validation) in zip(bases, results, strict=True):
        entry = Entry(
            name=f"{config.model.source}, untuned", kind="reference", base_model=config.model.source
        )
        ms = _ms_per_row(result, rows)
        candidates.append(
            Candidate(entry, result.task, on_validation, result.test, ms, samples=result.samples)
        )
    return candidates


def predict_base_model(
    config: dict[str, Any],
    state: dict[str, Any],
    rows: Sequence[Example],
    validation: Sequence[Example],
    num_threads: int,
    num_gpus: float,
) -> tuple[Predictions, list[Prediction]]:
    task, engine = load_base_model(config, state, num_threads, num_gpus)
    predictions, seconds = predict_with_time(task, engine, rows)
    return Predictions(
        task, predictions, seconds, None, _answer_samples(task, engine)
    ), task.predict(engine, validation)


def load_base_model(
    config: dict[str, Any], state: dict[str, Any], num_threads: int, num_gpus: float
) -> tuple[Task, "TransformersEngine"]:
    """Load a trial's base model before training on the device of this process, and restore its
    task. A head, if the task has one, is random."""
    with without_garbage_collection():
        import torch

        from medray.models.device import reserved_device
        from medray.registry.loading import base_model_engine

    torch.set_num_threads(num_threads)
    trial = TrialConfig.model_validate(config)
    task = restore(trial.task.model_dump(mode="json"), state)
    return task, base_model_engine(trial, task.head(), device=reserved_device(num_gpus))
