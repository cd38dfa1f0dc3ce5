"""Estimates of a study before its start: memory per worker, concurrent trials, hours. They read no
weights."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from medray.config.study import BaseModelConfig, StudyConfig
from medray.config.trial import TrialConfig
from medray.data import dataset as datasets
from medray.data.dataset import Dataset
from medray.errors import ConfigError
from medray.models import architecture
from medray.models.footprint import Batch, Footprint, measure
from medray.models.precision import default_precision
from medray.runtime.cluster import Cluster
from medray.study import search
from medray.study.placement import Placement, place
from medray.study.workload import Workload, measure_workload, num_epochs
from medray.tasks.base import protocol as tasks
from medray.tasks.base.protocol import Task, needs_of

PROCESS = 600_000_000  # bytes of a worker without a model: libraries, or the GPU's context
_USABLE = 0.9  # of the memory; the rest is lost to fragmentation
TFLOPS_OF_A_GPU = 40.0
_TFLOPS_OF_A_CPU = {
    "fp32": 0.04,
    "bf16": 0.06,
    "fp16": 0.04,
}  # per core with AVX512_BF16, measured with MiniLM


@dataclass(frozen=True)
class Speed:
    """The speed of a worker, in operations or in measured tokens per second."""

    tflops: float | None = None
    tokens_per_s: float | None = None


@dataclass(frozen=True)
class BaseEstimate:
    """The estimate of one base model."""

    source: str
    notes: tuple[str, ...]
    rows: Workload
    footprint: Footprint
    worker_bytes: int  # after sharding, with the process itself
    placement: Placement
    fits: bool | None  # None: the memory is unknown
    at_once: int
    num_trials: int
    trial_s: float

    @property
    def total_s(self) -> float:
        return self.num_trials * self.trial_s

    @property
    def gpu_s(self) -> float:
        return self.total_s * self.placement.least_workers * self.placement.gpus


@dataclass(frozen=True)
class StudyEstimate:
    bases: tuple[BaseEstimate, ...]
    share: float  # of the search that fits into search.num_epochs
    limit_s: float | None  # search.time_s

    @property
    def _unlimited_s(self) -> float:
        return self.share * sum(base.total_s / max(1, base.at_once) for base in self.bases)

    @property
    def hours(self) -> float:
        return min(self._unlimited_s, self.limit_s or math.inf) / 3600

    @property
    def gpu_hours(self) -> float:
        gpu_s, whole_s = self.share * sum(base.gpu_s for base in self.bases), self._unlimited_s
        return gpu_s / 3600 * min(1.0, self.hours * 3600 / whole_s if whole_s else 1.0)


def estimate(
    study: StudyConfig,
    cluster: Cluster,
    *,
    memory_bytes: int | None,
    speed: Speed,
    num_rows: int | None = None,
) -> StudyEstimate:
    """Estimate a study's memory, concurrent trials and hours.

    `memory_bytes` is the memory of a GPU, or of a node for trials without one. `num_rows` replaces
    data that is not on this machine."""
    dataset = None if num_rows else _dataset(study)
    task = tasks.fit(study.task, dataset.label_sets(), dataset.train) if dataset else None
    bases = tuple(
        _base(study, base, cluster, dataset, task, memory_bytes, speed, num_rows or 0)
        for base in study.base_models
    )
    epochs = sum(
        base.num_trials * num_epochs(study.trial(config), base.rows)
        for base, config in zip(bases, study.base_models, strict=True)
    )
    share = min(1.0, study.search.num_epochs / epochs) if study.search.num_epochs else 1.0
    return StudyEstimate(bases, share, study.search.time_s)


def footprint(trial: TrialConfig, *, length: int, num_labels: int, answer_tokens: int) -> Footprint:
    """Return the memory of one worker without sharding."""
    config, _ = architecture.find(trial.model.source, trial.model.revision)
    return _footprint(config, trial, length, num_labels, answer_tokens)


def _footprint(
    config: Any,
    trial: TrialConfig,
    length: int,
    num_labels: int,
    answer_tokens: int,
    least_rows: int = 1,
) -> Footprint:
    num_rows = max(least_rows, trial.train.token_budget // length)
    batch = Batch(num_rows, length, num_labels, answer_tokens)
    precision = default_precision(trial.model.precision)  # fp32 for `auto`, which takes more memory
    return measure(
        config, trial.model, trial.lora, batch, needs=needs_of(trial.task), precision=precision
    )


def sharded_bytes(whole: Footprint, zero_stage: int | None, num_workers: int) -> int:
    """Return the bytes per worker when the workers share optimizer state, gradients or weights."""
    common = (whole.moments if (zero_stage or 0) >= 1 else 0) + (
        whole.gradients if (zero_stage or 0) >= 2 else 0
    )
    common += whole.weights if zero_stage == 3 else 0
    return whole.peak - common + math.ceil(common / num_workers)


def _dataset(study: StudyConfig) -> Dataset:
    try:
        return datasets.load(study.data, tasks.task_options(study.task).bring)
    except (OSError, ValueError) as err:
        raise ConfigError(
            f"the study's data cannot be read here: {err}; give the number of training rows by "
            "--rows"
        ) from None


def _base(
    study: StudyConfig,
    base: BaseModelConfig,
    cluster: Cluster,
    dataset: Dataset | None,
    task: Task | None,
    memory_bytes: int | None,
    speed: Speed,
    num_rows: int,
) -> BaseEstimate:
    trial = study.trial(base)
    config, note = architecture.find(base.source, base.revision)
    rows = measure_workload(trial, dataset, task, num_rows)
    memory = _footprint(
        config, trial, rows.longest, rows.num_labels, rows.answer_tokens, rows.least_rows
    )
    num_trials = search.num_trials(study, base)
    placement = place(trial.resources, cluster, num_trials)
    workers = placement.least_workers
    worker_bytes = PROCESS + sharded_bytes(memory, trial.train.zero_stage, workers)
    fits, at_once, notes = None, min(placement.num_at_once, num_trials), [note] if note else []
    if memory_bytes:
        room = int(_USABLE * memory_bytes / worker_bytes)
        fits = room >= 1
        if not placement.gpus:  # workers of a node share its memory
            at_once = min(at_once, max(1, room * len(cluster.nodes) // workers))
        if not fits:
            notes.append(_advice(config, trial, rows, workers, int(_USABLE * memory_bytes)))
    return BaseEstimate(
        base.source,
        tuple(notes),
        rows,
        memory,
        worker_bytes,
        placement,
        fits,
        at_once,
        num_trials + search.num_repeats(study),
        _trial_s(trial, rows, memory, placement, speed),
    )


def _trial_s(
    trial: TrialConfig, rows: Workload, memory: Footprint, placement: Placement, speed: Speed
) -> float:
    """Estimate the seconds of a trial: two operations per weight in the forward pass, and two more
    in the backward pass where gradients flow."""
    epochs, workers = num_epochs(trial, rows), placement.least_workers
    train_tokens = epochs * rows.num_train * rows.mean
    validation_tokens = epochs * rows.num_validation * rows.mean
    forward, backward = 2.0, 2.0 * memory.trained_share
    step = forward + backward + (forward if trial.model.gradient_checkpointing else 0.0)
    if speed.tokens_per_s:
        return (train_tokens + validation_tokens * forward / step) / (speed.tokens_per_s * workers)
    tflops = speed.tflops or (
        TFLOPS_OF_A_GPU
        if placement.gpus
        else _TFLOPS_OF_A_CPU[default_precision(trial.model.precision)] * placement.cpus
    )
    operations = memory.num_linear * (train_tokens * step + validation_tokens * forward)
    return operations / (tflops * 1e12 * workers)


def _advice(config: Any, trial: TrialConfig, rows: Workload, workers: int, room: int) -> str:
    """Return the fastest settings that fit, as a sentence."""
    for settings in _smaller(trial, rows, workers):
        model = trial.model.model_copy(update=_section(settings, "model."))
        train = trial.train.model_copy(update=_section(settings, "train."))
        memory = _footprint(
            config,
            trial.model_copy(update={"model": model, "train": train}),
            rows.longest,
            rows.num_labels,
            rows.answer_tokens,
            rows.least_rows,
        )
        if (
            PROCESS
            + sharded_bytes(
                memory, train.zero_stage, int(settings.get("resources.num_workers", workers))
            )
            <= room
        ):
            return "fits with " + " ".join(
                f"{key}={str(value).lower()}" for key, value in settings.items()
            )
    return (
        "does not fit even with one row per step, gradient checkpointing, 4 bits or eight workers "
        "that share the weights; lower task.max_length"
    )


def _section(settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)
    }


def _smaller(trial: TrialConfig, rows: Workload, workers: int) -> Iterator[dict[str, Any]]:
    one_row = {"train.token_budget": rows.longest}
    yield one_row
    again = one_row | {"model.gradient_checkpointing": True}
    yield again
    if trial.train.zero_stage != 3 and trial.model.quantization == "none":
        yield again | {"model.quantization": "nf4"}
    for number in (2, 4, 8):
        if number > workers:
            yield again | {
                "train.strategy": "deepspeed",
                "train.zero_stage": 3,
                "resources.num_workers": number,
            }
