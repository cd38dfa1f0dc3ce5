"""Evaluate a release, a checkpoint or a base model on labeled rows: metrics and their intervals."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from medray.config.trial import DataConfig, TrialConfig
from medray.data import dataset as datasets
from medray.data.dataset import Dataset
from medray.data.minhash import hash_rows
from medray.errors import ConfigError, suggest
from medray.evaluation.analysis import SplitAnalysis
from medray.evaluation.bootstrap import Comparison, Interval, compare, interval
from medray.evaluation.calibration import calibrate
from medray.evaluation.metrics import Metrics, higher_is_better
from medray.evaluation.slices import Slicer
from medray.records import AS_IT_IS, CalibrationRecord
from medray.registry import loading
from medray.registry.external import fit_base_model_task
from medray.registry.loading import LoadedRelease
from medray.registry.predictions import examine
from medray.registry.registry import Registry
from medray.storage import checkpoint
from medray.storage.checkpoint import Manifest
from medray.tasks.base import protocol as tasks
from medray.tasks.base.protocol import Calibrated, Task
from medray.types import Engine, Example, Prediction

EvaluationSplit = Literal["test", "validation", "all"]
log = logging.getLogger(__name__)
_MOST_IDS = 5  # of rows in an error message


@dataclass(frozen=True)
class ReleaseComparison:
    other: str  # name@version, or a checkpoint's folder
    comparison: Comparison  # of the release's metric: the release minus the other

    def is_worse(self, metric: str) -> bool:
        """Return whether the rows show that the release is worse than the other."""
        is_lower = self.comparison.difference < 0
        return not self.comparison.is_tie and is_lower == higher_is_better(metric)


@dataclass(frozen=True)
class ReleaseEvaluation:
    of: str  # name@version, a checkpoint's folder, or a base model
    part: EvaluationSplit
    metric: str  # of the release's selection
    metrics: Metrics
    interval: Interval | None  # of that metric
    num_openings: int | None  # of these test labels, with this one
    calibration: CalibrationRecord  # of the release
    analysis: SplitAnalysis | None  # None for a task that generates text
    comparisons: tuple[ReleaseComparison, ...] = ()  # with other releases on the same rows

    def refusals(self, at_least: Mapping[str, float]) -> list[str]:
        """Return a sentence for each gate that refuses the release: metrics below their minimum,
        and other releases that are better."""
        rows = f"{self.metrics.num_rows} {self.part} rows"
        sentences = []
        for metric, minimum in at_least.items():
            if metric not in self.metrics.values or not higher_is_better(metric):
                metrics = [name for name in self.metrics.values if higher_is_better(name)]
                raise ConfigError(
                    f"--at-least {metric}={minimum:g}: unknown metric; {suggest(metric, metrics)}"
                )
            value = self.metrics.values[metric]
            if not value >= minimum:  # a NaN is refused too
                sentences.append(
                    f"{self.of}: {metric} is {value:.4f} on {rows}, below --at-least {minimum:g}"
                )
        return sentences + [
            f"{self.of}: {self.metric} is worse than that of {pair.other} on the same {rows}: the "
            f"difference is {pair.comparison.difference:.4f} (95 % interval "
            f"{pair.comparison.low:.4f} to {pair.comparison.high:.4f})"
            for pair in self.comparisons
            if pair.is_worse(self.metric)
        ]


def evaluate(
    of: str,
    data: DataConfig,
    part: EvaluationSplit,
    *,
    storage_path: str,
    log_dir: Path,
    against: Sequence[str] = (),
    device: str = "cpu",
) -> ReleaseEvaluation:
    """Predict the rows without their labels, then read the labels and score. Compare the release
    with those in `against` on the same rows."""
    release = _load(of, storage_path, device)
    dataset = datasets.load(data, release.task.options.bring)
    _check_unseen(release, dataset, part)
    others = [_load(reference, storage_path, device) for reference in against]
    for other in others:
        _check_unseen(other, dataset, part)
    return _evaluate(
        release.reference,
        release.task,
        release.engine,
        release.calibration,
        dataset,
        part,
        log_dir,
        others,
    )


def evaluate_base_model(
    config: TrialConfig, part: EvaluationSplit, *, log_dir: Path, device: str = "cpu"
) -> ReleaseEvaluation:
    """Evaluate the base model of a trial before training."""
    dataset = datasets.load(config.data, tasks.task_options(config.task).bring)
    task = fit_base_model_task(config, dataset)
    return _evaluate(
        f"{config.model.source}, untuned",
        task,
        loading.base_model_engine(config, device=device),
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
    part: EvaluationSplit,
    log_dir: Path,
    others: Sequence[LoadedRelease] = (),
) -> ReleaseEvaluation:
    rows = _rows(dataset, part)
    before = task.predict(engine, rows)
    predictions = _calibrate_answers(task, calibration, before)
    predictions_of_others = [
        _calibrate_answers(other.task, other.calibration, other.task.predict(other.engine, rows))
        for other in others
    ]
    examples, num_openings = _labels(dataset, rows, part, log_dir, f"evaluate {name}")
    metric = task.options.metric
    metrics = task.score(predictions, examples)
    results = tasks.results(task, predictions, examples)
    comparisons = []
    for other, of_other in zip(others, predictions_of_others, strict=True):
        second = tasks.results(other.task, of_other, examples)
        if not results.same_rows(second):
            raise ConfigError(
                f"{other.reference}: its task or labels differ from those of {name}; compare "
                "releases of one task"
            )
        comparisons.append(ReleaseComparison(other.reference, compare(results, second, metric)))
    return ReleaseEvaluation(
        name,
        part,
        metric,
        metrics,
        interval(results, metric) if metric in results.metrics else None,
        num_openings,
        calibration,
        examine(task, part, before, examples, calibration, Slicer.of(examples)),
        tuple(comparisons),
    )


def _calibrate_answers(
    task: Task, calibration: CalibrationRecord, predictions: Sequence[Prediction]
) -> Sequence[Prediction]:
    """Calibrate texts and answers to typed questions, since their figures include abstentions.
    Other figures are those before calibration."""
    return (
        predictions if isinstance(task, Calibrated) else calibrate(task, calibration, predictions)
    )


def _load(of: str, storage_path: str, device: str) -> LoadedRelease:
    """Load a checkpoint's folder, or a release."""
    return (
        loading.load(of, device=device)
        if (Path(of) / checkpoint.MANIFEST).is_file()
        else Registry(storage_path).resolve(of).load(device=device)
    )


def _rows(dataset: Dataset, part: EvaluationSplit) -> Sequence[Example]:
    """Return the rows of a split, test rows without labels. Training rows that the task adds are
    left out, since they train each model of the task."""
    if part == "validation":
        return dataset.validation
    if part == "test":
        return dataset.unlabelled_test()
    own = (row for row in dataset.train if row.id not in dataset.task_row_ids)
    return [*own, *dataset.validation, *dataset.unlabelled_test()]


def _labels(
    dataset: Dataset, rows: Sequence[Example], part: EvaluationSplit, log_dir: Path, caller: str
) -> tuple[list[Example], int | None]:
    if part == "validation":
        return list(rows), None
    test = dataset.open_test(log_dir, caller)
    by_id = {
        example.id: example for example in [*test.examples, *dataset.train, *dataset.validation]
    }
    return [by_id[row.id] for row in rows], test.num_openings


def _check_unseen(release: LoadedRelease, dataset: Dataset, part: EvaluationSplit) -> None:
    """Raise if training rows of the model are among the rows."""
    name, manifest = release.reference, release.manifest
    if manifest.data_fingerprint is None:
        log.warning(
            "%s: was trained by other software, and its training rows are unknown; they may "
            "include "
            "some of these rows",
            name,
        )
        return
    train_rows = loading.read_train_rows(release.folder)
    if train_rows is None:
        _check_fingerprints(name, manifest, dataset, part)
        return
    rows = _rows(dataset, part)
    train_ids = [
        row.id
        for row, is_train_row in zip(rows, np.isin(hash_rows(rows), train_rows), strict=True)
        if is_train_row
    ]
    if train_ids:
        raise ConfigError(
            f"{name}: {len(train_ids)} of the {len(rows)} rows of --split {part} trained it "
            f"({', '.join(train_ids[:_MOST_IDS])}{', …' * (len(train_ids) > _MOST_IDS)});"
            " remove them from the data, or give the release's own study with its data.split and "
            "--split test or validation"
        )


def _check_fingerprints(
    name: str, manifest: Manifest, dataset: Dataset, part: EvaluationSplit
) -> None:
    """Raise if rows may have trained a checkpoint that stores no row hashes: a base model, or one
    of an earlier medray."""
    # After a correction of labels, rows and splits are the same, and only the fingerprint of the
    # data differs.
    if (
        manifest.data_fingerprint != dataset.fingerprint
        and manifest.split_fingerprint != dataset.split_fingerprint
    ):
        if not manifest.is_untuned:
            log.warning(
                "%s: an earlier medray trained it and stored no row hashes; its training rows may "
                "include some of these rows",
                name,
            )
        return
    if part == "all":
        raise ConfigError(
            f"{name}: was trained on rows of this data; use --split test or validation"
        )
    if manifest.split_fingerprint != dataset.split_fingerprint:
        raise ConfigError(
            f"{name}: was trained on this data with another split, so its training rows may be in "
            f"this split's {part} part;"
            " give the release's own study with the same data.split"
        )
