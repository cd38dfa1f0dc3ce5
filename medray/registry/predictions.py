"""Compute a release's calibration, its probe record and an analysis from a checkpoint's own
predictions."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medray.config.study import CalibrationConfig
from medray.errors import ArtifactError, ConfigError
from medray.evaluation import (
    answer_calibration,
    calibration,
    diagnose,
    question_analysis,
    text_calibration,
)
from medray.evaluation.analysis import AnalysisSplit, SplitAnalysis
from medray.evaluation.bootstrap import Tallies
from medray.evaluation.calibration import calibrate, is_multi_label, matrix
from medray.evaluation.diagnose import SplitResults
from medray.evaluation.question_analysis import AnalysisRows
from medray.evaluation.slices import Slicer
from medray.records import AS_IT_IS, CalibrationRecord, ProbeRecord
from medray.storage.checkpoint import Probe
from medray.tasks.base import protocol as tasks
from medray.tasks.base.protocol import Calibrated, GradedTexts, QuestionTask, Task
from medray.types import Example, Prediction


def probe_record(where: str, task: Task, record: CalibrationRecord, probe: Probe) -> ProbeRecord:
    """Return a release's predictions for its checkpoint's probe, or labels alone for a task that
    generates text or mentions."""
    labels = task.labels or tuple(task.state().get("kinds", ()))
    if not isinstance(task, Calibrated):
        return ProbeRecord(labels=labels)
    try:
        rows = calibrate(
            task,
            record,
            task.read_probe(np.array(probe.outputs, dtype=np.float64).reshape(-1, len(labels))),
        )
    except ValueError as err:
        raise ArtifactError(
            f"{where}: its probe does not fit its labels ({err}); publish another checkpoint"
        ) from None
    return ProbeRecord(
        labels=labels,
        answers=tuple(row.labels for row in rows),
        probabilities=tuple(row.probabilities for row in rows),
    )


def fit_calibration(
    task: Task,
    predictions: Sequence[Prediction],
    examples: Sequence[Example],
    config: CalibrationConfig,
) -> CalibrationRecord:
    """Fit a calibration to a checkpoint's predictions of validation rows. A task that generates
    text has one if it can grade its answers."""
    if isinstance(task, QuestionTask):
        return answer_calibration.fit(
            predictions, task.with_answers(examples), config, by_kind=task.has_more
        )
    if isinstance(task, GradedTexts) and task.has_grades:
        return text_calibration.fit(predictions, task.grade(predictions, examples), config)
    if not isinstance(task, Calibrated):
        if config.abstain_precision is not None:
            raise ConfigError(
                f"abstain_precision {config.abstain_precision}: answers of task "
                f"{task.options.name} "
                "have no confidence; remove this setting, or set task.right_answer of instruct"
            )
        return AS_IT_IS
    results = task.results(predictions, examples)
    return calibration.fit(
        matrix(predictions),
        results.truth,
        results.predictions,
        multi_label=is_multi_label(task),
        scale=config.temperature,
        precision=config.abstain_precision,
        level=config.abstain_level,
    )


def examine(
    task: Task,
    split: AnalysisSplit,
    predictions: Sequence[Prediction],
    examples: Sequence[Example],
    record: CalibrationRecord,
    slicer: Slicer,
) -> SplitAnalysis | None:
    """Analyze predictions before calibration. Return None for a task that generates text."""
    if isinstance(task, QuestionTask):
        after = calibrate(task, record, predictions)
        tallies = tasks.results(task, after, examples)
        assert isinstance(tallies, Tallies), f"task {task.options.name} has no Tallies"
        rows = AnalysisRows(
            task.with_answers(examples),
            predictions,
            after,
            tallies,
            slicer.columns(examples),
            has_questions=not task.has_more,
        )
        return question_analysis.examine(split, rows, record, metric=task.options.metric)
    if not isinstance(task, Calibrated):
        return None
    results = SplitResults(
        [example.id for example in examples],
        task.results(predictions, examples),
        matrix(predictions),
        slicer.columns(examples),
    )
    return diagnose.examine(
        split,
        results,
        record,
        labels=task.labels,
        multi_label=is_multi_label(task),
        metric=task.options.metric,
    )


def read_predictions(checkpoint: Path) -> list[Prediction]:
    """Return a checkpoint's predictions of its validation rows, before calibration."""
    # Split bytes: lines of text would also end at U+0085 or U+2028 in an id.
    lines = (checkpoint / "predictions.jsonl").read_bytes().splitlines()
    return [Prediction.from_dict(json.loads(line)) for line in lines]
