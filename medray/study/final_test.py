"""The final test: finalists and references predict the test rows without labels, then the labels
are opened once for all of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from medray.config.load import public_settings
from medray.config.study import StudyConfig, TrialConfig
from medray.data.dataset import Dataset
from medray.evaluation import baselines, leaderboard
from medray.evaluation.analysis import ModelAnalysis
from medray.evaluation.baselines import Baseline
from medray.evaluation.calibration import is_multi_label
from medray.evaluation.leaderboard import Contender, Entry
from medray.evaluation.slices import Slicer
from medray.models.imports import uncollected
from medray.registry.predictions import examine, fit_calibration, read_predictions
from medray.storage import checkpoint
from medray.study.materials import Materials
from medray.study.placement import Placement
from medray.tasks.base import protocol as tasks
from medray.tasks.base.protocol import Calibrated, Task, restore, task_options
from medray.types import Engine, Example, Prediction


class Call(Protocol):
    """Calls a function once per tuple of arguments, where a worker of a trial could run, and
    returns the results in order."""

    def __call__(
        self,
        function: Callable[..., Any],
        arguments: Sequence[tuple[Any, ...]],
        placement: Placement,
    ) -> list[Any]: ...


@dataclass(frozen=True)
class Finalist:
    """A trial that is tested, and its trials with other seeds or on other folds."""

    entry: Entry
    repeats: tuple[Entry, ...] = ()

    @property
    def all(self) -> tuple[Entry, ...]:
        return (self.entry, *self.repeats)

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.all]


@dataclass(frozen=True)
class Candidate:
    """One candidate's predictions, made before the test labels are read."""

    entry: Entry
    task: Task
    validation: list[Prediction]
    test: list[Prediction]
    ms_per_row: float
    merged: list[Prediction] | None = None  # on validation rows
    samples: tuple[str, ...] = ()  # answers to the user's own prompts


@dataclass(frozen=True)
class Predictions:
    """The result of a process that loaded a checkpoint or a base model."""

    task: Task
    test: list[Prediction]
    seconds: float
    merged: list[Prediction] | None  # on validation rows, where merging is not exact
    samples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    candidates: list[Contender]
    references: list[Contender]
    num_openings: int
    analyses: list[ModelAnalysis]  # of the candidates; none where answers are texts
    samples: dict[
        str, tuple[str, ...]
        # answers of each candidate, and of each base model before training, to the user's own
        # prompts
    ]


@dataclass(frozen=True)
class Fold:
    """A split of the data, and the entries that were trained on it. A study has one, or pools
    several."""

    dataset: Dataset
    entries: Sequence[Entry]


def final_test(
    study: StudyConfig,
    finalists: Sequence[Finalist],
    materials: Materials,
    placement: Placement,
    call: Call,
    log_dir: Path,
) -> Verdict:
    """Test the finalists, the baselines, and where the task can use a model without training, each
    base model.

    Finalists stand in one order in every fold: predictions are pooled, so that each test row is
    predicted once by each."""
    task = materials.task
    bases = [study.trial(base) for base in study.base_models]
    folds = _folds(study, finalists, materials)
    by_fold, references_by_fold = [], []
    for fold in folds:
        rows, validation = fold.dataset.unlabelled_test(), fold.dataset.validation
        by_fold.append(_trained(fold.entries, rows, validation, placement, call))
        references_by_fold.append(
            [
                _baseline(*fitted, fold.dataset, rows)
                for fitted in _fit_baselines(task, fold.dataset)
            ]
        )
        if task.head() is None:
            configs = [
                as_trained(config, number, fold.entries) for number, config in enumerate(bases)
            ]
            own = tasks.fit(
                task.options, fold.dataset.label_sets(), fold.dataset.train
            )  # its prompt shows rows of this fold
            references_by_fold[-1] += _untuned(configs, own, rows, validation, placement, call)
    labels = [fold.dataset.open_test(log_dir, f"study {study.name}") for fold in folds]
    validation = [example for fold in folds for example in fold.dataset.validation]
    test = [example for fold in labels for example in fold.examples]

    def score(candidate: Candidate) -> Contender:
        pairs = [
            (
                candidate.task.score(predictions, rows),
                tasks.results(candidate.task, predictions, rows).in_units(_units(rows)),
            )
            for predictions, rows in ((candidate.validation, validation), (candidate.test, test))
        ]
        merged = (
            candidate.task.score(candidate.merged, validation).values if candidate.merged else {}
        )
        entry = replace(candidate.entry, validation_merged=merged)
        return leaderboard.contender(
            entry,
            task.options.metric,
            validation=pairs[0],
            test=pairs[1],
            ms_per_row=candidate.ms_per_row,
        )

    slicer = Slicer.of(validation)

    def analyze(candidate: Candidate, first: Candidate) -> ModelAnalysis | None:
        """By the calibration of the checkpoint that would be published, the first fold's, fitted on
        its own validation rows."""
        record = fit_calibration(
            first.task, first.validation, folds[0].dataset.validation, study.calibration
        )
        on_validation = examine(
            candidate.task, "validation", candidate.validation, validation, record, slicer
        )
        on_test = examine(candidate.task, "test", candidate.test, test, record, slicer)
        return (
            ModelAnalysis(candidate.entry.name, record, on_validation, on_test)
            if on_validation and on_test
            else None
        )

    candidates = _same_in_all(by_fold)
    return Verdict(
        [score(_pool(folds_of)) for folds_of in candidates],
        [score(_pool(folds_of)) for folds_of in _same_in_all(references_by_fold)],
        max(fold.num_openings for fold in labels),
        [model for folds_of in candidates if (model := analyze(_pool(folds_of), folds_of[0]))],
        {
            candidate.entry.name: candidate.samples
            for candidate in (*by_fold[0], *references_by_fold[0])
            if candidate.samples
        },
    )


def _folds(study: StudyConfig, finalists: Sequence[Finalist], materials: Materials) -> list[Fold]:
    """What is tested on which rows: seeds all on the same, folds each on its own."""
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


def _same_in_all(folds: Sequence[Sequence[Candidate]]) -> list[tuple[Candidate, ...]]:
    """The same candidate in each fold; a reference that could not be fitted in one of them is left
    out."""
    if len({len(fold) for fold in folds}) == 1:
        return list(zip(*folds, strict=True))
    kinds = [{candidate.entry.name: candidate for candidate in fold} for fold in folds]
    shared = [name for name in kinds[0] if all(name in kind for kind in kinds)]
    return [tuple(kind[name] for kind in kinds) for name in shared]


def _pool(folds: Sequence[Candidate]) -> Candidate:
    """One candidate under the first fold's name, task and checkpoint: settings were chosen there,
    on rows that test nothing."""
    if len(folds) == 1:
        return folds[0]
    return replace(
        folds[0],
        validation=[row for fold in folds for row in fold.validation],
        test=[row for fold in folds for row in fold.test],
        ms_per_row=sum(fold.ms_per_row for fold in folds) / len(folds),
        merged=[row for fold in folds for row in fold.merged or ()] or None,
    )


def _units(examples: Sequence[Example]) -> npt.NDArray[np.int64] | None:
    """A number for each row where rows come more than once: folds share rows that a task brings,
    and may share validation rows."""
    numbers: dict[str, int] = {}
    units = [numbers.setdefault(example.id, len(numbers)) for example in examples]
    return np.array(units, dtype=np.int64) if len(numbers) < len(units) else None


def _trained(
    entries: Sequence[Entry],
    rows: Sequence[Example],
    validation: Sequence[Example],
    placement: Placement,
    call: Call,
) -> list[Candidate]:
    results = call(
        predict,
        [(entry.checkpoint, rows, validation, int(placement.cpus) or 1) for entry in entries],
        placement,
    )
    candidates = []
    for entry, result in zip(entries, results, strict=True):
        unmerged = read_predictions(Path(str(entry.checkpoint)))
        candidates.append(
            Candidate(
                entry,
                result.task,
                unmerged,
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
    checkpoint: str, rows: Sequence[Example], validation: Sequence[Example], num_threads: int
) -> Predictions:
    """A reloaded checkpoint's answers, and those of the plain model that it is merged into."""
    with uncollected():
        import torch

        from medray.registry.loading import load

    torch.set_num_threads(num_threads)
    loaded = load(checkpoint, device="cuda" if torch.cuda.is_available() else "cpu")
    predictions, seconds = timed(loaded.task, loaded.engine, rows)
    samples = _sampled(loaded.task, loaded.engine)
    is_exact = loaded.manifest.quantization == "none"
    return Predictions(
        loaded.task,
        predictions,
        seconds,
        None if is_exact else loaded.task.predict(loaded.merged().engine, validation),
        samples,
    )


def timed(task: Task, engine: Engine, rows: Sequence[Example]) -> tuple[list[Prediction], float]:
    """Predictions and their seconds, without those of a model's first row: its weights are still
    being read then."""
    task.predict(engine, rows[:1])
    start = time.perf_counter()
    predictions = task.predict(engine, rows)
    return predictions, time.perf_counter() - start


def as_trained(config: TrialConfig, base: int, finalists: Sequence[Entry]) -> TrialConfig:
    """A base model's trial in the arithmetic of its finalist, so that training alone sets the two
    apart."""
    for entry in finalists:
        if entry.base == base and entry.checkpoint:
            used = checkpoint.read(Path(entry.checkpoint)).precision.actual
            return config.model_copy(
                update={"model": config.model.model_copy(update={"precision": used})}
            )
    return config


def _sampled(task: Task, engine: Engine) -> tuple[str, ...]:
    samples = task_options(task.options).samples()
    return tuple(prediction.text for prediction in task.predict(engine, samples)) if samples else ()


def _untuned(
    bases: Sequence[TrialConfig],
    task: Task,
    rows: Sequence[Example],
    validation: Sequence[Example],
    placement: Placement,
    call: Call,
) -> list[Candidate]:
    """Each base model before training, by its own settings of the task."""
    state, threads = task.state(), int(placement.cpus) or 1
    configs = [
        config.model_dump(mode="json") | {"data": public_settings(config.data)} for config in bases
    ]
    results = call(
        predict_untuned,
        [(config, state, rows, validation, threads) for config in configs],
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


def predict_untuned(
    config: dict[str, Any],
    state: dict[str, Any],
    rows: Sequence[Example],
    validation: Sequence[Example],
    num_threads: int,
) -> tuple[Predictions, list[Prediction]]:
    with uncollected():
        import torch

        from medray.registry.loading import untuned

    torch.set_num_threads(num_threads)
    trial = TrialConfig.model_validate(config)
    task = restore(trial.task.model_dump(mode="json"), state)
    engine = untuned(trial, device="cuda" if torch.cuda.is_available() else "cpu")
    predictions, seconds = timed(task, engine, rows)
    return Predictions(task, predictions, seconds, None, _sampled(task, engine)), task.predict(
        engine, validation
    )


def _fit_baselines(task: Task, dataset: Dataset) -> list[tuple[Baseline, Calibrated]]:
    if not isinstance(task, Calibrated):
        return []
    multi_label = is_multi_label(task)
    texts, truth = [example.text for example in dataset.train], task.truth(dataset.train)
    references = [
        baselines.majority(truth, multi_label=multi_label),
        baselines.tfidf(texts, truth, multi_label=multi_label),
    ]
    return [(reference, task) for reference in references if reference is not None]


def _baseline(
    reference: Baseline, task: Calibrated, dataset: Dataset, rows: Sequence[Example]
) -> Candidate:
    def answers(examples: Sequence[Example]) -> list[Prediction]:
        probabilities = reference.probabilities([example.text for example in examples])
        return [
            Prediction(example.id, (), tuple(row.tolist()))
            for example, row in zip(examples, np.asarray(probabilities), strict=True)
        ]

    validation = answers(dataset.validation)
    # Thresholds fitted to constant answers would say a label of every row.
    tuned = task if reference.pipeline is None else task.tune(validation, dataset.validation)
    start = time.perf_counter()
    test = answers(rows)
    seconds = time.perf_counter() - start
    entry = Entry(name=reference.name, kind="reference")
    return Candidate(
        entry, tuned, tuned.decide(validation), tuned.decide(test), 1000 * seconds / len(rows)
    )
