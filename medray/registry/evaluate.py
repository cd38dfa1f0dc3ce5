"""A release or checkpoint on labelled rows: its figures, and how sure they are."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from medray.config.study import DataConfig, TrialConfig
from medray.data import dataset as datasets
from medray.data.dataset import Dataset
from medray.data.row_hashes import hash_rows
from medray.errors import ConfigError
from medray.evaluation.analysis import SplitAnalysis
from medray.evaluation.bootstrap import Interval, interval
from medray.evaluation.metrics import Metrics
from medray.evaluation.slices import Slicer
from medray.records import AS_IT_IS, CalibrationRecord
from medray.registry import loading
from medray.registry.answers import examine
from medray.registry.loading import LoadedRelease
from medray.registry.registry import Registry
from medray.storage import checkpoint
from medray.storage.checkpoint import Manifest
from medray.tasks.base import protocol as tasks
from medray.tasks.base.protocol import Task
from medray.types import Engine, Example

Part = Literal["test", "validation", "all"]
log = logging.getLogger(__name__)
_SHOWN = 5  # ids of rows


@dataclass(frozen=True)
class ReleaseEvaluation:
    of: str  # name@version, a checkpoint's folder, or a base model that is untuned
    part: Part
    metric: str  # that the release was chosen by
    metrics: Metrics
    interval: Interval | None  # of that figure
    num_openings: int | None  # of these test labels, this one included
    calibration: CalibrationRecord  # of the release
    analysis: SplitAnalysis | None  # None where answers are texts


def evaluate(of: str, data: DataConfig, part: Part, *, storage_path: str, log_dir: Path) -> ReleaseEvaluation:
    """Answer the rows without labels, then read the labels, and score."""
    loaded = _load(of, storage_path)
    dataset = datasets.load(data, loaded.task.options.bring)
    _check_unseen(loaded, dataset, part)
    return _evaluate(loaded.reference, loaded.task, loaded.engine, loaded.calibration, dataset, part, log_dir)


def evaluate_untuned(config: TrialConfig, part: Part, *, log_dir: Path) -> ReleaseEvaluation:
    """The base model of a trial as it is: what training starts from."""
    source, dataset = config.model.source, datasets.load(config.data, tasks.task_options(config.task).bring)
    task = tasks.fit(config.task, dataset.label_sets(), dataset.train)
    if task.head() is not None:
        raise ConfigError(f"{source}: task {config.task.name!r} puts a fresh head on it, which knows nothing before training")
    return _evaluate(f"{source}, untuned", task, loading.untuned(config), AS_IT_IS, dataset, part, log_dir)


def _evaluate(
    name: str, task: Task, engine: Engine, calibration: CalibrationRecord, dataset: Dataset, part: Part, log_dir: Path
) -> ReleaseEvaluation:
    rows = _rows(dataset, part)
    predictions = task.predict(engine, rows)
    labelled, num_openings = _labels(dataset, rows, part, log_dir, f"evaluate {name}")
    metric = task.options.metric
    metrics = task.score(predictions, labelled)
    answers = tasks.answers(task, predictions, labelled)
    sure = interval(answers, metric) if metric in answers.metrics else None
    analysis = examine(task, part, predictions, labelled, calibration, Slicer.of(labelled))
    return ReleaseEvaluation(name, part, metric, metrics, sure, num_openings, calibration, analysis)


def _load(of: str, storage_path: str) -> LoadedRelease:
    """A checkpoint's folder, or a release."""
    return loading.load(of) if (Path(of) / checkpoint.MANIFEST).is_file() else Registry(storage_path).resolve(of).load()


def _rows(dataset: Dataset, part: Part) -> Sequence[Example]:
    """Without labels where they are test rows; training rows that a task brings train every model of it."""
    if part == "validation":
        return dataset.validation
    if part == "test":
        return dataset.unlabelled_test()
    own = (row for row in dataset.train if row.id not in dataset.brought)
    return [*own, *dataset.validation, *dataset.unlabelled_test()]


def _labels(dataset: Dataset, rows: Sequence[Example], part: Part, log_dir: Path, caller: str) -> tuple[list[Example], int | None]:
    if part == "validation":
        return list(rows), None
    opened = dataset.open_test(log_dir, caller)
    by_id = {example.id: example for example in [*opened.examples, *dataset.train, *dataset.validation]}
    return [by_id[row.id] for row in rows], opened.num_openings


def _check_unseen(loaded: LoadedRelease, dataset: Dataset, part: Part) -> None:
    """Raise where rows that trained the model would evaluate it."""
    name, manifest = loaded.reference, loaded.manifest
    if manifest.data_fingerprint is None:
        log.warning("%s: was trained elsewhere, on rows that nothing names; whether some of these trained it cannot be known", name)
        return
    trained = loading.read_train_rows(loaded.folder)
    if trained is None:
        _check_fingerprints(name, manifest, dataset, part)
        return
    rows = _rows(dataset, part)
    seen = [row.id for row, is_seen in zip(rows, np.isin(hash_rows(rows), trained), strict=True) if is_seen]
    if seen:
        raise ConfigError(
            f"{name}: {len(seen)} of the {len(rows)} rows of --split {part} trained it ({', '.join(seen[:_SHOWN])}{', …' * (len(seen) > _SHOWN)});"
            " take them out of the data, or give the study that it comes from, with its data.split and --split test or validation"
        )


def _check_fingerprints(name: str, manifest: Manifest, dataset: Dataset, part: Part) -> None:
    """Of a checkpoint that keeps no rows: a base model as it is, or one of an earlier medray."""
    # Rows whose labels were corrected since are the same rows on the same sides, under another fingerprint of the data.
    if manifest.data_fingerprint != dataset.fingerprint and manifest.split_fingerprint != dataset.split_fingerprint:
        if not manifest.is_untuned:
            log.warning("%s: an earlier medray trained it and kept no rows; whether some of these trained it cannot be known", name)
        return
    if part == "all":
        raise ConfigError(f"{name} was trained on rows of this data: allowed: --split test or validation")
    if manifest.split_fingerprint != dataset.split_fingerprint:
        raise ConfigError(
            f"{name} was trained on this data under another split, so rows of this split's {part} part may have trained it:"
            " give the study that it comes from, with the same data.split"
        )
