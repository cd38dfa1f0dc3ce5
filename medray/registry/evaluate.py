"""Evaluates a release, a checkpoint or an untuned base model on labelled rows: its figures and
their intervals."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from medray.config.study import DataConfig, TrialConfig
from medray.data import dataset as datasets
from medray.data.dataset import Dataset
from medray.data.minhash import hash_rows
from medray.errors import ConfigError
from medray.evaluation.analysis import SplitAnalysis
from medray.evaluation.bootstrap import Interval, interval
from medray.evaluation.metrics import Metrics
from medray.evaluation.slices import Slicer
from medray.records import AS_IT_IS, CalibrationRecord
from medray.registry import loading
from medray.registry.external import fit_untuned_task
from medray.registry.loading import LoadedRelease
from medray.registry.predictions import examine
from medray.registry.registry import Registry
from medray.storage import checkpoint
from medray.storage.checkpoint import Manifest
from medray.tasks.base import protocol as tasks
from medray.tasks.base.protocol import Task
from medray.types import Engine, Example

Part = Literal["test", "validation", "all"]
log = logging.getLogger(__name__)
_MOST_IDS = 5  # of rows in a message


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


def evaluate(
    of: str, data: DataConfig, part: Part, *, storage_path: str, log_dir: Path
) -> ReleaseEvaluation:
    """Predict the rows without their labels, then read the labels, and score."""
    loaded = _load(of, storage_path)
    dataset = datasets.load(data, loaded.task.options.bring)
    _check_unseen(loaded, dataset, part)
    return _evaluate(
        loaded.reference, loaded.task, loaded.engine, loaded.calibration, dataset, part, log_dir
    )


def evaluate_untuned(config: TrialConfig, part: Part, *, log_dir: Path) -> ReleaseEvaluation:
    """Evaluate the base model of a trial before training."""
    dataset = datasets.load(config.data, tasks.task_options(config.task).bring)
    task = fit_untuned_task(config, dataset)
    return _evaluate(
        f"{config.model.source}, untuned",
        task,
        loading.untuned(config),
        AS_IT_IS,
        dataset,
        part,
        log_dir,
    )


def _evaluate(
    name: str,
    task: Task,
    engine: Engine,
    calibration: CalibrationRecord,
    dataset: Dataset,
    part: Part,
    log_dir: Path,
) -> ReleaseEvaluation:
    rows = _rows(dataset, part)
    predictions = task.predict(engine, rows)
    labelled, num_openings = _labels(dataset, rows, part, log_dir, f"evaluate {name}")
    metric = task.options.metric
    metrics = task.score(predictions, labelled)
    results = tasks.results(task, predictions, labelled)
    return ReleaseEvaluation(
        name,
        part,
        metric,
        metrics,
        interval(results, metric) if metric in results.metrics else None,
        num_openings,
        calibration,
        examine(task, part, predictions, labelled, calibration, Slicer.of(labelled)),
    )


def _load(of: str, storage_path: str) -> LoadedRelease:
    """A checkpoint's folder, or a release."""
    return (
        loading.load(of)
        if (Path(of) / checkpoint.MANIFEST).is_file()
        else Registry(storage_path).resolve(of).load()
    )


def _rows(dataset: Dataset, part: Part) -> Sequence[Example]:
    """The rows of a part, test rows without labels. Training rows that a task brings are left out:
    they train every model of it."""
    if part == "validation":
        return dataset.validation
    if part == "test":
        return dataset.unlabelled_test()
    own = (row for row in dataset.train if row.id not in dataset.task_row_ids)
    return [*own, *dataset.validation, *dataset.unlabelled_test()]


def _labels(
    dataset: Dataset, rows: Sequence[Example], part: Part, log_dir: Path, caller: str
) -> tuple[list[Example], int | None]:
    if part == "validation":
        return list(rows), None
    test = dataset.open_test(log_dir, caller)
    by_id = {
        example.id: example for example in [*test.examples, *dataset.train, *dataset.validation]
    }
    return [by_id[row.id] for row in rows], test.num_openings


def _check_unseen(loaded: LoadedRelease, dataset: Dataset, part: Part) -> None:
    """Raise where rows that trained the model would evaluate it."""
    name, manifest = loaded.reference, loaded.manifest
    if manifest.data_fingerprint is None:
        log.warning(
            "%s: was trained elsewhere, on rows that nothing names; whether some of these trained "
            "it cannot be known",
            name,
        )
        return
    train_rows = loading.read_train_rows(loaded.folder)
    if train_rows is None:
        _check_fingerprints(name, manifest, dataset, part)
        return
    rows = _rows(dataset, part)
    seen = [
        row.id
        for row, is_seen in zip(rows, np.isin(hash_rows(rows), train_rows), strict=True)
        if is_seen
    ]
    if seen:
        raise ConfigError(
            f"{name}: {len(seen)} of the {len(rows)} rows of --split {part} trained it "
            f"({', '.join(seen[:_MOST_IDS])}{', …' * (len(seen) > _MOST_IDS)});"
            " take them out of the data, or give the study that it comes from, with its data.split "
            "and --split test or validation"
        )


def _check_fingerprints(name: str, manifest: Manifest, dataset: Dataset, part: Part) -> None:
    """Do the same for a checkpoint that keeps no rows: an untuned base model, or one of an earlier
    medray."""
    # Rows whose labels were corrected since are the same rows on the same sides, under another
    # fingerprint of the data.
    if (
        manifest.data_fingerprint != dataset.fingerprint
        and manifest.split_fingerprint != dataset.split_fingerprint
    ):
        if not manifest.is_untuned:
            log.warning(
                "%s: an earlier medray trained it and kept no rows; whether some of these trained "
                "it cannot be known",
                name,
            )
        return
    if part == "all":
        raise ConfigError(
            f"{name} was trained on rows of this data: allowed: --split test or validation"
        )
    if manifest.split_fingerprint != dataset.split_fingerprint:
        raise ConfigError(
            f"{name} was trained on this data under another split, so rows of this split's {part} "
            "part may have trained it:"
            " give the study that it comes from, with the same data.split"
        )
