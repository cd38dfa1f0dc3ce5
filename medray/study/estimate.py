"""What a study will take, before it is spent: memory of a worker, trials side by side, hours. No
weight is read."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from medray.config.study import BaseModelConfig, StudyConfig, TrialConfig
from medray.data import dataset as datasets
from medray.data.dataset import Dataset
from medray.errors import ArtifactError, ConfigError
from medray.models import architecture, sources
from medray.models.build import load_tokenizer
from medray.models.footprint import Batch, Footprint, measure
from medray.models.precision import untimed
from medray.runtime.cluster import Cluster
from medray.study import search
from medray.study.placement import Placement, place
from medray.tasks.base import protocol as tasks
from medray.tasks.base.language_model import LanguageModelLoss
from medray.tasks.base.protocol import Task, needs_of

PROCESS = 600_000_000  # libraries of a worker, before it has a model; of a GPU, its context
_SPARE = 0.9  # of a memory: the rest is lost between blocks
_WORD = 1.5  # tokens of a word, where no tokenizer is here to count them
_SAMPLE = 200
_ANSWER = 8  # tokens of a label
TFLOPS_OF_A_GPU = 40.0
_TFLOPS_OF_A_CPU = {"fp32": 0.04, "bf16": 0.06, "fp16": 0.04}  # a core with AVX512_BF16, MiniLM


@dataclass(frozen=True)
class Speed:
    """How fast a worker is: by what it computes, or as it was measured."""

    tflops: float | None = None
    tokens_per_s: float | None = None


@dataclass(frozen=True)
class Rows:
    """What a base model trains on, in its tokens."""

    num_train: int
    num_validation: int
    mean: float
    longest: int
    num_labels: int
    answer_tokens: int
    how: str  # lengths are known


@dataclass(frozen=True)
class BasePlan:
    """One base model of a study."""

    source: str
    notes: tuple[str, ...]
    rows: Rows
    footprint: Footprint
    worker_bytes: int  # after sharding, the process itself included
    placement: Placement
    fits: bool | None  # None: nobody said how much memory there is
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
class StudyPlan:
    bases: tuple[BasePlan, ...]
    share: float  # of the search that its own budget of epochs lets happen
    limit_s: float | None  # of the search, by search.time_s

    @property
    def hours(self) -> float:
        found = self.share * sum(base.total_s / max(1, base.at_once) for base in self.bases)
        return min(found, self.limit_s or math.inf) / 3600

    @property
    def gpu_hours(self) -> float:
        found = self.share * sum(base.gpu_s for base in self.bases)
        whole = self.share * sum(base.total_s / max(1, base.at_once) for base in self.bases)
        return found / 3600 * min(1.0, self.hours * 3600 / whole if whole else 1.0)


def plan(
    study: StudyConfig,
    cluster: Cluster,
    *,
    memory_bytes: int | None,
    speed: Speed,
    num_rows: int | None = None,
) -> StudyPlan:
    """`memory_bytes` is that of a GPU, or where a trial takes none, of a node; `num_rows` stands
    for data that is not here."""
    dataset = None if num_rows else _dataset(study)
    task = tasks.fit(study.task, dataset.label_sets(), dataset.train) if dataset else None
    found = tuple(
        _base(study, base, cluster, dataset, task, memory_bytes, speed, num_rows or 0)
        for base in study.base_models
    )
    epochs = sum(
        base.num_trials * _epochs(study.trial(asked), base.rows)
        for base, asked in zip(found, study.base_models, strict=True)
    )
    share = min(1.0, study.search.num_epochs / epochs) if study.search.num_epochs else 1.0
    return StudyPlan(found, share, study.search.time_s)


def footprint(trial: TrialConfig, *, length: int, num_labels: int, answer_tokens: int) -> Footprint:
    """Of one worker that shares nothing out."""
    config, _ = architecture.find(trial.model.source, trial.model.revision)
    return _footprint(config, trial, length, num_labels, answer_tokens)


def _footprint(
    config: Any, trial: TrialConfig, length: int, num_labels: int, answer_tokens: int
) -> Footprint:
    batch = Batch(max(1, trial.train.token_budget // length), length, num_labels, answer_tokens)
    precision = untimed(trial.model.precision)  # `auto` may choose either; fp32 takes more memory
    return measure(
        config, trial.model, trial.lora, batch, needs=needs_of(trial.task), precision=precision
    )


def sharded(whole: Footprint, zero_stage: int | None, num_workers: int) -> int:
    """What each worker holds of it."""
    shared = (whole.moments if (zero_stage or 0) >= 1 else 0) + (
        whole.gradients if (zero_stage or 0) >= 2 else 0
    )
    shared += whole.weights if zero_stage == 3 else 0
    return whole.peak - shared + math.ceil(shared / num_workers)


def _dataset(study: StudyConfig) -> Dataset:
    try:
        return datasets.load(study.data, tasks.task_options(study.task).bring)
    except (OSError, ValueError) as err:
        raise ConfigError(
            f"the study's data cannot be read here: {err}; give --rows for its number of training "
            "rows"
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
) -> BasePlan:
    trial = study.trial(base)
    config, note = architecture.find(base.source, base.revision)
    rows = _rows(trial, dataset, task, num_rows)
    found = _footprint(config, trial, rows.longest, rows.num_labels, rows.answer_tokens)
    num_trials = search.num_trials(study, base)
    placement = place(trial.resources, cluster, num_trials)
    workers = placement.least_workers
    worker_bytes = PROCESS + sharded(found, trial.train.zero_stage, workers)
    fits, at_once, notes = None, min(placement.num_at_once, num_trials), [note] if note else []
    if memory_bytes:
        room = int(_SPARE * memory_bytes / worker_bytes)
        fits = room >= 1
        if not placement.gpus:  # workers of a node share its memory
            at_once = min(at_once, max(1, room * len(cluster.nodes) // workers))
        if not fits:
            notes.append(_advice(config, trial, rows, workers, int(_SPARE * memory_bytes)))
    return BasePlan(
        base.source,
        tuple(notes),
        rows,
        found,
        worker_bytes,
        placement,
        fits,
        at_once,
        num_trials + search.num_repeats(study),
        _trial_s(trial, rows, found, placement, speed),
    )


def _rows(trial: TrialConfig, dataset: Dataset | None, task: Task | None, num_rows: int) -> Rows:
    longest = int(trial.task.model_dump()["max_length"])
    if dataset is None or task is None:
        num_validation = round(num_rows * trial.data.split.validation)
        return Rows(
            min(num_rows, trial.data.limit or num_rows),
            num_validation,
            longest,
            longest,
            2,
            _answer_tokens(trial),
            "every row at max_length",
        )
    task = tasks.fit(trial.task, dataset.label_sets(), dataset.train)
    num_train = min(len(dataset.train), trial.data.limit or len(dataset.train))
    sample = dataset.train[:: max(1, len(dataset.train) // _SAMPLE)]
    head = task.head()
    num_labels = len(head.labels) if head else 0
    try:
        tokenizer = load_tokenizer(sources.config_dir(trial.model.source, trial.model.revision))
    except ArtifactError:
        mean = sum(min(longest, _WORD * len(example.text.split())) for example in sample) / len(
            sample
        )
        return Rows(
            num_train,
            len(dataset.validation),
            mean,
            longest,
            num_labels,
            _answer_tokens(trial),
            f"{_WORD:g} tokens a word: its tokenizer is not here",
        )
    encoded = task.encode(sample, tokenizer)
    lengths = [len(row.tokens) for row in encoded]
    loss = task.loss([row.target for row in encoded], [row.row_id for row in encoded])
    answers = (
        [loss.num_tokens(row.target, len(row.tokens)) for row in encoded]
        if isinstance(loss, LanguageModelLoss)
        else [0]
    )
    mean = sum(lengths) / len(sample)  # a text in several windows is several rows
    return Rows(
        num_train,
        len(dataset.validation),
        mean,
        max(lengths),
        num_labels,
        max(answers),
        f"{len(sample)} rows sampled",
    )


def _answer_tokens(trial: TrialConfig) -> int:
    """At most, where no tokenizer counts them."""
    options = trial.task.model_dump()
    return int(options.get("max_new_tokens") or options.get("max_answer") or _ANSWER)


def _epochs(trial: TrialConfig, rows: Rows) -> float:
    steps = max(1, math.ceil(rows.num_train / trial.train.samples_per_step))
    return trial.train.epochs or (trial.train.max_steps or 0) / steps


def _trial_s(
    trial: TrialConfig, rows: Rows, found: Footprint, placement: Placement, speed: Speed
) -> float:
    """Two operations for each weight forwards, two more backwards where gradients pass; a frozen
    base needs none for the weights themselves."""
    epochs, workers = _epochs(trial, rows), placement.least_workers
    trained, judged = epochs * rows.num_train * rows.mean, epochs * rows.num_validation * rows.mean
    forward, backward = 2.0, 2.0 * found.trained_share
    step = forward + backward + (forward if trial.model.gradient_checkpointing else 0.0)
    if speed.tokens_per_s:
        return (trained + judged * forward / step) / (speed.tokens_per_s * workers)
    tflops = speed.tflops or (
        TFLOPS_OF_A_GPU
        if placement.gpus
        else _TFLOPS_OF_A_CPU[untimed(trial.model.precision)] * placement.cpus
    )
    return found.num_linear * (trained * step + judged * forward) / (tflops * 1e12 * workers)


def _advice(config: Any, trial: TrialConfig, rows: Rows, workers: int, room: int) -> str:
    """The first settings that would fit, least slow first."""
    for settings in _smaller(trial, rows, workers):
        model = trial.model.model_copy(
            update={
                key.removeprefix("model."): value
                for key, value in settings.items()
                if key.startswith("model.")
            }
        )
        train = trial.train.model_copy(
            update={
                key.removeprefix("train."): value
                for key, value in settings.items()
                if key.startswith("train.")
            }
        )
        found = _footprint(
            config,
            trial.model_copy(update={"model": model, "train": train}),
            rows.longest,
            rows.num_labels,
            rows.answer_tokens,
        )
        if (
            PROCESS
            + sharded(found, train.zero_stage, int(settings.get("resources.num_workers", workers)))
            <= room
        ):
            return "would fit with " + " ".join(
                f"{key}={str(value).lower()}" for key, value in settings.items()
            )
    return (
        "does not fit with one row of a step in memory, checkpointing, 4 bits or eight workers "
        "that share the weights: lower task.max_length"
    )


def _smaller(trial: TrialConfig, rows: Rows, workers: int) -> Iterator[dict[str, Any]]:
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
