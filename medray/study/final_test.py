"""The last look: finalists and references answer the test rows without labels, then the labels are opened once for all of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medray.config.load import public_settings
from medray.config.study import CalibrationConfig, TrialConfig
from medray.data.dataset import Dataset
from medray.evaluation import baselines, leaderboard
from medray.evaluation.analysis import ModelAnalysis
from medray.evaluation.baselines import Reference
from medray.evaluation.leaderboard import Entry, Judged
from medray.evaluation.slices import Slicer
from medray.models.imports import uncollected
from medray.registry import answers as answering
from medray.storage import checkpoint
from medray.study.placement import Placement
from medray.study.trial_actor import give_memory_back
from medray.tasks.base import protocol as tasks
from medray.tasks.base.protocol import Calibrated, Task, restore, task_options
from medray.types import Engine, Example, Prediction


@dataclass(frozen=True)
class Answered:
    """What one candidate says, before anybody knows what is right on test rows."""

    entry: Entry
    task: Task
    validation: list[Prediction]
    test: list[Prediction]
    ms_per_row: float
    merged: list[Prediction] | None = None  # on validation rows
    samples: tuple[str, ...] = ()  # what is answered to the user's own prompts


@dataclass(frozen=True)
class Said:
    """What comes back from where a checkpoint was reloaded."""

    task: Task
    test: list[Prediction]
    seconds: float
    merged: list[Prediction] | None  # on validation rows, where merging is not exact
    samples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    candidates: list[Judged]
    references: list[Judged]
    num_openings: int
    analyses: list[ModelAnalysis]  # of the candidates; none where answers are texts
    samples: dict[str, tuple[str, ...]]  # what each candidate, and each base model before training, says to the user's own prompts


@dataclass(frozen=True)
class Fold:
    """A split of the data, and the finalists that were trained on it. A study has one, or pools several."""

    dataset: Dataset
    finalists: Sequence[Entry]


def judge(
    folds: Sequence[Fold],
    task: Task,
    placement: Placement,
    log_dir: Path,
    *,
    calibration: CalibrationConfig,
    caller: str,
    bases: Sequence[TrialConfig] = (),
) -> Verdict:
    """Finalists stand in one order in every fold: what they answered is pooled, so that each test row is answered once by each.

    `bases` are asked untuned as well, where the task can ask a model without training.
    """
    answered, compared = [], []
    for fold in folds:
        rows = fold.dataset.unlabelled_test()
        answered.append(_finalists(fold.finalists, rows, fold.dataset.validation, placement))
        compared.append(_references(task, fold.dataset, rows))
        asked = [as_trained(config, number, fold.finalists) for number, config in enumerate(bases)]
        if task.head() is None:
            own = tasks.fit(task.options, fold.dataset.label_sets(), fold.dataset.train)  # its prompt shows rows of this fold
            compared[-1] += _untuned(asked, own, rows, fold.dataset.validation, placement)
    opened = [fold.dataset.open_test(log_dir, caller) for fold in folds]
    validation = [example for fold in folds for example in fold.dataset.validation]
    test = [example for fold in opened for example in fold.examples]

    def scored(found: Answered) -> Judged:
        pairs = [
            (found.task.score(predictions, examples), tasks.answers(found.task, predictions, examples))
            for predictions, examples in ((found.validation, validation), (found.test, test))
        ]
        pairs = [(metrics, said.in_units(_units(rows))) for (metrics, said), rows in zip(pairs, (validation, test), strict=True)]
        metric = task.options.metric
        merged = found.task.score(found.merged, validation).values if found.merged else {}
        entry = replace(found.entry, validation_merged=merged)
        return leaderboard.judged(entry, metric, validation=pairs[0], test=pairs[1], ms_per_row=found.ms_per_row)

    slicer = Slicer.of(validation)

    def analysed(found: Answered, published: Answered) -> ModelAnalysis | None:
        """By the calibration of the checkpoint that would be published, fitted on its own validation rows."""
        record = answering.fit(published.task, published.validation, folds[0].dataset.validation, calibration)
        on_validation = answering.examine(found.task, "validation", found.validation, validation, record, slicer)
        on_test = answering.examine(found.task, "test", found.test, test, record, slicer)
        return ModelAnalysis(found.entry.name, record, on_validation, on_test) if on_validation and on_test else None

    candidates = _same_in_all(answered)
    return Verdict(
        [scored(_pooled(found)) for found in candidates],
        [scored(_pooled(found)) for found in _same_in_all(compared)],
        max(fold.num_openings for fold in opened),
        [made for found in candidates if (made := analysed(_pooled(found), found[0]))],
        {found.entry.name: found.samples for found in (*answered[0], *compared[0]) if found.samples},
    )


def _same_in_all(folds: Sequence[Sequence[Answered]]) -> list[tuple[Answered, ...]]:
    """The same candidate in each fold; a reference that could not be fitted in one of them is left out."""
    if len({len(fold) for fold in folds}) == 1:
        return list(zip(*folds, strict=True))
    kinds = [{found.entry.name: found for found in fold} for fold in folds]
    shared = [name for name in kinds[0] if all(name in kind for kind in kinds)]
    return [tuple(kind[name] for kind in kinds) for name in shared]


def _pooled(folds: Sequence[Answered]) -> Answered:
    """Told under the first fold's name, task and checkpoint: settings were chosen there, on rows that it does not judge."""
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
    """A number for each row where rows come more than once: folds share rows that a task brings, and may share validation rows."""
    numbers: dict[str, int] = {}
    found = [numbers.setdefault(example.id, len(numbers)) for example in examples]
    return np.array(found, dtype=np.int64) if len(numbers) < len(found) else None


def _finalists(finalists: Sequence[Entry], rows: Sequence[Example], validation: Sequence[Example], placement: Placement) -> list[Answered]:
    """Each on what a worker of its trial had."""
    import ray

    task = ray.remote(num_cpus=placement.cpus, num_gpus=placement.gpus)(_freeing(predict))
    answers = ray.get([task.remote(entry.checkpoint, rows, validation, int(placement.cpus) or 1) for entry in finalists])
    found = []
    for entry, said in zip(finalists, answers, strict=True):
        unmerged = answering.stored(Path(str(entry.checkpoint)))
        found.append(Answered(entry, said.task, unmerged, said.test, 1000 * said.seconds / len(rows), said.merged, said.samples))
    return found


def _freeing(ask: Callable[..., Any]) -> Callable[..., Any]:
    """Without GPUs, Ray runs the next call in the same process, which has imported what it needs."""

    def call(*arguments: Any) -> Any:
        try:
            return ask(*arguments)
        finally:
            give_memory_back()

    return call


def predict(checkpoint: str, rows: Sequence[Example], validation: Sequence[Example], num_threads: int) -> Said:
    """A reloaded checkpoint's answers, and those of the plain model that it is merged into."""
    with uncollected():
        import torch

        from medray.registry.loading import load, merged

    torch.set_num_threads(num_threads)
    loaded = load(checkpoint, device="cuda" if torch.cuda.is_available() else "cpu")
    predictions, seconds = timed(loaded.task, loaded.engine, rows)
    samples = _sampled(loaded.task, loaded.engine)
    is_exact = loaded.manifest.quantization == "none"
    return Said(loaded.task, predictions, seconds, None if is_exact else loaded.task.predict(merged(loaded), validation), samples)


def timed(task: Task, engine: Engine, rows: Sequence[Example]) -> tuple[list[Prediction], float]:
    """Predictions and their seconds, without those of a model's first row: its weights are still being read then."""
    task.predict(engine, rows[:1])
    start = time.perf_counter()
    predictions = task.predict(engine, rows)
    return predictions, time.perf_counter() - start


def as_trained(config: TrialConfig, base: int, finalists: Sequence[Entry]) -> TrialConfig:
    """A base model's trial in the arithmetic of its finalist, so that training alone sets the two apart."""
    for entry in finalists:
        if entry.base == base and entry.checkpoint:
            used = checkpoint.read(Path(entry.checkpoint)).precision.used
            return config.model_copy(update={"model": config.model.model_copy(update={"precision": used})})
    return config


def _sampled(task: Task, engine: Engine) -> tuple[str, ...]:
    samples = task_options(task.options).samples()
    return tuple(said.text for said in task.predict(engine, samples)) if samples else ()


def _untuned(
    bases: Sequence[TrialConfig], task: Task, rows: Sequence[Example], validation: Sequence[Example], placement: Placement
) -> list[Answered]:
    """Each base model before training, by its own settings of the task."""
    import ray

    ask = ray.remote(num_cpus=placement.cpus, num_gpus=placement.gpus)(_freeing(predict_untuned))
    threads = int(placement.cpus) or 1
    answers = ray.get(
        [
            ask.remote(config.model_dump(mode="json") | {"data": public_settings(config.data)}, task.state(), rows, validation, threads)
            for config in bases
        ]
    )
    found = []
    for config, (said, on_validation) in zip(bases, answers, strict=True):
        entry = Entry(name=f"{config.model.source}, untuned", kind="reference", base_model=config.model.source)
        found.append(Answered(entry, said.task, on_validation, said.test, 1000 * said.seconds / len(rows), samples=said.samples))
    return found


def predict_untuned(
    config: dict[str, Any], state: dict[str, Any], rows: Sequence[Example], validation: Sequence[Example], num_threads: int
) -> tuple[Said, list[Prediction]]:
    with uncollected():
        import torch

        from medray.registry.loading import untuned

    torch.set_num_threads(num_threads)
    trial = TrialConfig.model_validate(config)
    task = restore(trial.task.model_dump(mode="json"), state)
    engine = untuned(trial, device="cuda" if torch.cuda.is_available() else "cpu")
    predictions, seconds = timed(task, engine, rows)
    return Said(task, predictions, seconds, None, _sampled(task, engine)), task.predict(engine, validation)


def _references(task: Task, dataset: Dataset, rows: Sequence[Example]) -> list[Answered]:
    if not isinstance(task, Calibrated):
        return []
    multi_label = answering.is_multi_label(task)
    texts, truth = [example.text for example in dataset.train], task.truth(dataset.train)
    found = [baselines.majority(truth, multi_label=multi_label), baselines.tfidf(texts, truth, multi_label=multi_label)]
    return [_reference(reference, task, dataset, rows) for reference in found if reference is not None]


def _reference(found: Reference, task: Calibrated, dataset: Dataset, rows: Sequence[Example]) -> Answered:
    def answers(examples: Sequence[Example]) -> list[Prediction]:
        probabilities = found.probabilities([example.text for example in examples])
        return [Prediction(example.id, (), tuple(row.tolist())) for example, row in zip(examples, np.asarray(probabilities), strict=True)]

    validation = answers(dataset.validation)
    # Thresholds fitted to constant answers would say a label of every row.
    tuned = task if found.pipeline is None else task.tune(validation, dataset.validation)
    start = time.perf_counter()
    test = answers(rows)
    seconds = time.perf_counter() - start
    entry = Entry(name=found.name, kind="reference")
    return Answered(entry, tuned, tuned.decide(validation), tuned.decide(test), 1000 * seconds / len(rows))
