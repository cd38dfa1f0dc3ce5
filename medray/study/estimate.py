"""Estimates of a study before its start: memory per worker, concurrent trials, hours. They read no
weights."""

import math
from dataclasses import dataclass
from typing import Any

from medray.config.study import BaseModelConfig, StudyConfig
from medray.config.trial import TrialConfig
from medray.data import dataset as datasets
from medray.data.dataset import Dataset
from medray.errors import ArtifactError, ConfigError
from medray.models import architecture
from medray.models.families import ENCODERS
from medray.models.footprint import Footprint
from medray.models.precision import default_precision
from medray.runtime.cluster import Cluster
from medray.study import gpus, search
from medray.study.gpus import USABLE, BatchSeconds, Card, card_of
from medray.study.memory import PROCESS, advice, sharded_bytes, step_footprint
from medray.study.placement import Placement, place
from medray.study.workload import Workload, measure_workload, num_epochs
from medray.tasks.base import protocol as tasks
from medray.tasks.base.protocol import Task

TFLOPS_OF_A_GPU = 40.0
_TFLOPS_OF_A_CPU = {
    "fp32": 0.04,
    "bf16": 0.06,
    "fp16": 0.04,
}  # per core with AVX512_BF16, measured with MiniLM

_HEADER = (
    "base model",
    "parameters",
    "trainable",
    "GB/worker",
    "activations (GB)",
    "fits",
    "workers",
    "parallel trials",
    "trials",
    "hours/trial",
)


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

    def cells(self) -> tuple[str, ...]:
        """Return its row in the table of a study."""
        place = self.placement
        devices = f"{place.gpus:g} GPU" if place.gpus else f"{place.cpus:g} CPU"
        return (
            self.source,
            f"{self.footprint.num_parameters / 1e6:,.0f}M",
            f"{self.footprint.num_trainable / 1e6:.1f}M",
            f"{self.worker_bytes / 1e9:.1f}",
            f"{self.footprint.activations / 1e9:.1f}",
            "-" if self.fits is None else "yes" if self.fits else "no",
            f"{place.least_workers} x {devices}",
            str(self.at_once),
            str(self.num_trials),
            hours_text(self.trial_s / 3600),
        )


@dataclass(frozen=True, repr=False)
class StudyEstimate:
    """The estimate of a study. It prints as a table with a row per base model."""

    bases: tuple[BaseEstimate, ...]
    share: float  # of the search that fits into search.num_epochs
    limit_s: float | None  # search.time_s

    def __repr__(self) -> str:
        rows = [" | ".join(row) for row in self.rows()]
        return "\n".join([*rows, f"in total at most {hours_text(self.hours)} hours"])

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table, its header first."""
        return [_HEADER, *(base.cells() for base in self.bases)]

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


def trials_per_gpu(trial: TrialConfig, cluster: Cluster) -> int:
    """Return how many trials of a base model share a GPU of this cluster, by its rows of full
    length. It is 1 where the GPU is unknown."""
    card = card_of(cluster)
    if card is None or trial.resources.gpus_per_worker is not None:
        return 1
    try:
        config, _ = architecture.find(trial.model.source, trial.model.revision)
    except ArtifactError:  # its trials will fail, with this reason
        return 1
    rows = measure_workload(trial, None, None, 1)
    memory = step_footprint(config, trial, rows.longest, 2, rows.answer_tokens, is_on_gpu=True)
    seconds = _batch_seconds(trial, rows, memory, config, card)
    return gpus.trials_per_gpu(card, seconds, PROCESS + memory.peak)


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
    card = card_of(cluster)
    memory = step_footprint(
        config,
        trial,
        rows.longest,
        rows.num_labels,
        rows.answer_tokens,
        rows.least_rows,
        is_on_gpu=cluster.gpus > 0 and trial.resources.gpus_per_worker != 0,
    )
    seconds = _batch_seconds(trial, rows, memory, config, card) if card else None
    num_trials = search.num_trials(study, base)
    per_gpu = trials_per_gpu(trial, cluster)  # as the study itself counts them
    placement = place(trial.resources, cluster, num_trials, per_gpu=per_gpu)
    workers = placement.least_workers
    worker_bytes = PROCESS + sharded_bytes(memory, trial.train.zero_stage, workers)
    fits, at_once, notes = None, min(placement.num_at_once, num_trials), [note] if note else []
    if memory_bytes:
        memory_bytes = int(memory_bytes * min(1.0, placement.gpus or 1.0))
        room = int(USABLE * memory_bytes / worker_bytes)
        fits = room >= 1
        if not placement.gpus:  # workers of a node share its memory
            at_once = min(at_once, max(1, room * len(cluster.nodes) // workers))
        if not fits:
            notes.append(
                advice(
                    config, trial, rows, workers, int(USABLE * memory_bytes), bool(placement.gpus)
                )
            )
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
        _trial_s(trial, rows, memory, placement, speed, seconds),
    )


def _step_operations(trial: TrialConfig, memory: Footprint) -> float:
    """Return the operations per weight and token of a step: two in the forward pass, and two more
    in the backward pass where gradients flow."""
    again = 2.0 if trial.model.gradient_checkpointing else 0.0
    return 2.0 + 2.0 * memory.trained_share + again


def _batch_tokens(trial: TrialConfig, rows: Workload) -> float:
    """Return the tokens of a usual micro-batch."""
    return max(1.0, min(trial.train.token_budget, trial.train.samples_per_step * rows.mean))


def _batch_seconds(
    trial: TrialConfig, rows: Workload, memory: Footprint, config: Any, card: Card
) -> BatchSeconds:
    tokens = _batch_tokens(trial, rows)
    return gpus.batch_seconds(
        card,
        memory.num_linear * tokens * _step_operations(trial, memory),
        width=config.hidden_size,
        num_layers=config.num_hidden_layers,
        is_encoder=config.model_type in ENCODERS,
    )


def _trial_s(
    trial: TrialConfig,
    rows: Workload,
    memory: Footprint,
    placement: Placement,
    speed: Speed,
    seconds: BatchSeconds | None,
) -> float:
    """Estimate the seconds of a trial. `seconds` is of a micro-batch on a known GPU."""
    epochs, workers = num_epochs(trial, rows), placement.least_workers
    train_tokens = epochs * rows.num_train * rows.mean
    validation_tokens = epochs * rows.num_validation * rows.mean
    step = _step_operations(trial, memory)
    tokens = train_tokens + validation_tokens * 2.0 / step
    if speed.tokens_per_s:
        return tokens / (speed.tokens_per_s * workers)
    if placement.gpus and seconds and not speed.tflops:
        num_sharing = round(1 / placement.gpus) if placement.gpus < 1 else 1
        num_batches = tokens / _batch_tokens(trial, rows)
        return num_batches * seconds.of_trials(num_sharing) / workers
    tflops = speed.tflops or (
        TFLOPS_OF_A_GPU
        if placement.gpus
        else _TFLOPS_OF_A_CPU[default_precision(trial.model.precision)] * placement.cpus
    )
    return memory.num_linear * tokens * step / (tflops * 1e12 * workers)


def hours_text(hours: float) -> str:
    """Return hours with two digits also where there are thousandths of one."""
    return f"{hours:.3f}" if hours >= 0.1 or not hours else f"{hours:.2g}"
