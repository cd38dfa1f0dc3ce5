"""The final test: finalists and references predict the test rows without labels. Then the labels
are opened once for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medray.config.study import CalibrationConfig, StudyConfig
from medray.data.dataset import Dataset
from medray.evaluation import leaderboard
from medray.evaluation.analysis import ModelAnalysis
from medray.evaluation.calibration import calibrate
from medray.evaluation.leaderboard import Contender, Entry
from medray.evaluation.slices import Slicer
from medray.records import CalibrationRecord
from medray.registry.predictions import examine, fit_calibration
from medray.study import candidates, references
from medray.study.candidates import Caller, Candidate
from medray.study.materials import Materials
from medray.study.placement import Placement
from medray.study.services import DecisionService
from medray.tasks.base import protocol as tasks
from medray.tasks.base.encoders import for_base
from medray.tasks.base.protocol import QuestionTask, Task, has_confident_texts
from medray.types import Example


@dataclass(frozen=True)
class Finalist:
    """A trial in the final test, and its repeats with other seeds or folds."""

    entry: Entry
    repeats: tuple[Entry, ...] = ()

    @property
    def all(self) -> tuple[Entry, ...]:
        return (self.entry, *self.repeats)

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.all]


@dataclass(frozen=True)
class Verdict:
    candidates: list[Contender]
    references: list[Contender]
    num_openings: int
    analyses: list[ModelAnalysis]  # of the candidates; empty for a task that generates text
    # Answers to the user's prompts, of each candidate and of each base model before training.
    samples: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Fold:
    """A split of the data with the entries trained on it. A study has one, or pools several."""

    dataset: Dataset
    entries: Sequence[Entry]


@dataclass(frozen=True)
class LabeledRows:
    """The rows that candidates are scored on, over all folds."""

    validation: list[Example]
    test: list[Example]

    def score(self, candidate: Candidate, metric: str) -> Contender:
        task = candidate.task
        validation, test = (
            (
                task.score(predictions, rows),
                tasks.results(task, predictions, rows).in_units(_units(rows)),
            )
            for predictions, rows in (
                (candidate.validation, self.validation),
                (candidate.test, self.test),
            )
        )
        merged = task.score(candidate.merged, self.validation).values if candidate.merged else {}
        return leaderboard.contender(
            replace(candidate.entry, validation_merged=merged),
            metric,
            validation=validation,
            test=test,
            ms_per_row=candidate.ms_per_row,
        )

    def analyze(
        self, candidate: Candidate, record: CalibrationRecord, slicer: Slicer
    ) -> ModelAnalysis | None:
        task = candidate.task
        validation = examine(
            task, "validation", candidate.validation, self.validation, record, slicer
        )
        test = examine(task, "test", candidate.test, self.test, record, slicer)
        if validation is None or test is None:
            return None
        return ModelAnalysis(candidate.entry.name, record, validation, test)


def final_test(
    study: StudyConfig,
    finalists: Sequence[Finalist],
    materials: Materials,
    placement: Placement,
    call: Caller,
    log_dir: Path,
    services: Sequence[DecisionService] = (),
) -> Verdict:
    """Test the finalists, the baselines and the services, and each base model where the task needs
    no training.

    Finalists have one order in all folds. Their predictions are pooled over the folds, so each
    candidate predicts each test row once."""
    folds = _folds(study, finalists, materials)
    by_fold, references_by_fold = _predict(study, folds, materials.task, placement, call, services)
    labels = [fold.dataset.open_test(log_dir, f"study {study.name}") for fold in folds]
    rows = LabeledRows(
        [example for fold in folds for example in fold.dataset.validation],
        [example for fold in labels for example in fold.examples],
    )
    slicer, metric = Slicer.of(rows.validation), materials.task.options.metric
    models, analyses = [], []
    for folds_of in _align(by_fold):
        first = folds_of[0]
        models.append(rows.score(_pool(_calibrate(folds_of, folds, study.calibration)), metric))
        # The calibration of the checkpoint to publish, the first fold's, is that of its own
        # validation rows.
        record = fit_calibration(
            first.task, first.validation, folds[0].dataset.validation, study.calibration
        )
        if analysis := rows.analyze(_pool(folds_of), record, slicer):
            analyses.append(analysis)
    return Verdict(
        models,
        [
            rows.score(_pool(_calibrate(folds_of, folds, study.calibration)), metric)
            for folds_of in _align(references_by_fold)
        ],
        max(fold.num_openings for fold in labels),
        analyses,
        {
            candidate.entry.name: candidate.samples
            for candidate in (*by_fold[0], *references_by_fold[0])
            if candidate.samples
        },
    )


def _predict(
    study: StudyConfig,
    folds: Sequence[Fold],
    task: Task,
    placement: Placement,
    call: Caller,
    services: Sequence[DecisionService],
) -> tuple[list[list[Candidate]], list[list[Candidate]]]:
    """Predict the rows of each fold without test labels, and return its finalists and its
    references."""
    bases = [study.trial(base) for base in study.base_models]
    by_fold, references_by_fold = [], []
    encoder = references.frozen_encoder(bases, task, placement, call)
    for fold in folds:
        rows, validation = fold.dataset.unlabelled_test(), fold.dataset.validation
        answers = [service.candidate(task, validation, rows) for service in services]
        by_fold.append(
            candidates.finalist_candidates(fold.entries, rows, validation, placement, call)
        )
        baselines = references.baseline_candidates(task, fold.dataset, rows, encoder)
        configs = [
            candidates.with_precision_of(fold.entries, config, number)
            for number, config in enumerate(bases)
            if for_base(task, config.model.source, config.model.revision).head() is None
        ]
        if configs:
            # The prompt of this fold's task shows rows of this fold.
            fold_task = tasks.fit(task.options, fold.dataset.label_sets(), fold.dataset.train)
            baselines += candidates.base_model_candidates(
                configs, fold_task, rows, validation, placement, call
            )
        references_by_fold.append([*baselines, *answers])
    return by_fold, references_by_fold


def _folds(study: StudyConfig, finalists: Sequence[Finalist], materials: Materials) -> list[Fold]:
    """Return the entries to test per split: seeds share one split, each fold has its own."""
    data = study.data
    if not data.split.is_pooled:
        return [
            Fold(
                materials.dataset(data), [entry for finalist in finalists for entry in finalist.all]
            )
        ]
    splits = [data.split.model_copy(update={"fold": number}) for number in range(data.split.folds)]
    return [
        Fold(
            materials.dataset(data.model_copy(update={"split": split})),
            [finalist.all[number] for finalist in finalists],
        )
        for number, split in enumerate(splits)
    ]


def _align(folds: Sequence[Sequence[Candidate]]) -> list[tuple[Candidate, ...]]:
    """Group the same candidate of all folds. Leave out a reference that some fold could not
    fit."""
    if len({len(fold) for fold in folds}) == 1:
        return list(zip(*folds, strict=True))
    kinds = [{candidate.entry.name: candidate for candidate in fold} for fold in folds]
    names = [name for name in kinds[0] if all(name in kind for kind in kinds)]
    return [tuple(kind[name] for kind in kinds) for name in names]


def _calibrate(
    candidates_of: Sequence[Candidate], folds: Sequence[Fold], config: CalibrationConfig
) -> list[Candidate]:
    """Calibrate texts and answers to typed questions, each fold on its own validation rows. Their
    figures include abstentions; those of labels describe the model's own probabilities."""
    results = []
    for candidate, fold in zip(candidates_of, folds, strict=True):
        task, rows = candidate.task, fold.dataset.validation
        if isinstance(task, QuestionTask) or has_confident_texts(task):
            record = fit_calibration(task, candidate.validation, rows, config)
            candidate = replace(
                candidate,
                validation=calibrate(task, record, candidate.validation),
                test=calibrate(task, record, candidate.test),
                merged=candidate.merged and calibrate(task, record, candidate.merged),
            )
        results.append(candidate)
    return results


def _pool(folds: Sequence[Candidate]) -> Candidate:
    """Pool one candidate's folds under the first fold's name, task and checkpoint. The search chose
    the settings there, on rows outside the test. Each fold's rows choose a baseline's settings, so
    they are left out where they differ."""
    if len(folds) == 1:
        return folds[0]
    entry = folds[0].entry
    if entry.kind == "reference" and any(fold.entry.settings != entry.settings for fold in folds):
        entry = replace(entry, settings={})
    # A service counts all its requests, so the last fold has those of every fold.
    entry = replace(entry, service=folds[-1].entry.service)
    return replace(
        folds[0],
        entry=entry,
        validation=[row for fold in folds for row in fold.validation],
        test=[row for fold in folds for row in fold.test],
        ms_per_row=sum(fold.ms_per_row for fold in folds) / len(folds),
        merged=[row for fold in folds for row in fold.merged or ()] or None,
    )


def _units(examples: Sequence[Example]) -> npt.NDArray[np.int64] | None:
    """Return a number per distinct row where rows repeat, else None. Folds share the rows that a
    task adds, and may share validation rows."""
    numbers: dict[str, int] = {}
    units = [numbers.setdefault(example.id, len(numbers)) for example in examples]
    return np.array(units, dtype=np.int64) if len(numbers) < len(units) else None
