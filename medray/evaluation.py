"""A release or checkpoint on labelled rows: its figures, and how sure they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medray import checkpoint, loading
from medray.answering import examine
from medray.checkpoint import Manifest
from medray.config import TrialConfig
from medray.data import dataset as datasets
from medray.data.base import Example
from medray.data.dataset import Dataset
from medray.engines.base import Engine
from medray.errors import ConfigError
from medray.loading import Loaded
from medray.records import AS_IT_IS, CalibrationRecord
from medray.registry import Registry
from medray.sections import DataConfig
from medray.selection.analysis import SplitAnalysis
from medray.selection.metrics import Metrics
from medray.selection.slices import Slicer
from medray.selection.statistics import Interval, interval
from medray.tasks import base as tasks
from medray.tasks.base import Task

Part = Literal["test", "validation", "all"]


@dataclass(frozen=True)
class Evaluation:
    of: str  # name@version, a checkpoint's folder, or a base model that is untuned
    part: Part
    metric: str  # that the release was chosen by
    metrics: Metrics
    interval: Interval | None  # of that figure
    num_openings: int | None  # of these test labels, this one included
    calibration: CalibrationRecord  # of the release
    analysis: SplitAnalysis | None  # None where answers are texts


def evaluate(of: str, data: DataConfig, part: Part, *, storage_path: str, log_dir: Path) -> Evaluation:
    """Answer the rows without labels, then read the labels, and score."""
    name, loaded = _load(of, storage_path)
    dataset = datasets.load(data, loaded.task.options.bring)
    _unseen(name, loaded.manifest, dataset, part)
    return _judged(name, loaded.task, loaded.engine, loaded.calibration, dataset, part, log_dir)


def evaluate_untuned(config: TrialConfig, part: Part, *, log_dir: Path) -> Evaluation:
    """The base model of a trial as it is: what training starts from."""
    source, dataset = config.model.source, datasets.load(config.data, tasks.task_options(config.task).bring)
    task = tasks.fit(config.task, dataset.label_sets(), dataset.train)
    if task.head() is not None:
        raise ConfigError(f"{source}: task {config.task.name!r} puts a fresh head on it, which knows nothing before training")
    return _judged(f"{source}, untuned", task, loading.untuned(config), AS_IT_IS, dataset, part, log_dir)


def _judged(
    name: str, task: Task, engine: Engine, calibration: CalibrationRecord, dataset: Dataset, part: Part, log_dir: Path
) -> Evaluation:
    rows = dataset.validation if part == "validation" else dataset.unlabelled_test()
    if part == "all":
        rows = [*dataset.train, *dataset.validation, *rows]
    predictions = task.predict(engine, rows)
    labelled, num_openings = _labels(dataset, rows, part, log_dir, f"evaluate {name}")
    metric = task.options.metric
    metrics = task.score(predictions, labelled)
    answers = task.answers(predictions, labelled)
    sure = interval(answers, metric) if metric in answers.metrics else None
    analysis = examine(task, part, predictions, labelled, calibration, Slicer.of(labelled))
    return Evaluation(name, part, metric, metrics, sure, num_openings, calibration, analysis)


def _load(of: str, storage_path: str) -> tuple[str, Loaded]:
    if (Path(of) / checkpoint.MANIFEST).is_file():
        return of, loading.load(of)
    release = Registry(storage_path).resolve(of)
    return release.reference, release.load()


def _labels(dataset: Dataset, rows: Sequence[Example], part: Part, log_dir: Path, caller: str) -> tuple[list[Example], int | None]:
    if part == "validation":
        return list(rows), None
    opened = dataset.open_test(log_dir, caller)
    by_id = {example.id: example for example in [*opened.examples, *dataset.train, *dataset.validation]}
    return [by_id[row.id] for row in rows], opened.num_openings


def _unseen(name: str, manifest: Manifest, dataset: Dataset, part: Part) -> None:
    """Rows that trained a model must not judge it."""
    # Rows whose labels were corrected since are the same rows on the same sides, under another fingerprint of the data.
    if manifest.data_fingerprint != dataset.fingerprint and manifest.split_fingerprint != dataset.split_fingerprint:
        return
    if part == "all":
        raise ConfigError(f"{name} was trained on rows of this data: allowed: --split test or validation")
    if manifest.split_fingerprint != dataset.split_fingerprint:
        raise ConfigError(
            f"{name} was trained on this data under another split, so rows of this split's {part} part may have trained it:"
            " give the study that it comes from, with the same data.split"
        )
