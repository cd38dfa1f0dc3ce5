"""Writes runs of studies to disk from plain figures, without a model and without Ray."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from medray.config.study import StudyConfig
from medray.evaluation import analysis as analyses
from medray.evaluation import leaderboard, leaderboard_files
from medray.evaluation.analysis import Analysis, ModelAnalysis
from medray.evaluation.bootstrap import LabelResults
from medray.evaluation.diagnose import SplitResults, examine
from medray.evaluation.leaderboard import Contender, Entry, Leaderboard
from medray.evaluation.metrics import Metrics, single_label
from medray.evaluation.trial_entries import entry_of
from medray.records import (
    HISTORY,
    AbstentionRecord,
    CalibrationRecord,
    Evaluation,
    TrialRecord,
    dump_history,
)
from medray.storage import files
from medray.storage.checkpoint import BaseRecord, Manifest, PrecisionRecord, Probe, TaskRecord, save
from medray.study.run import Run

ROWS = 160
BASES = ("pkg:small-encoder", "hub/large-decoder")
LABELS = ("ill", "well")
Trials = list[tuple[TrialRecord, list[Evaluation]]]


def study(folder: Path, labels: tuple[str, str] = LABELS, **changes: Any) -> StudyConfig:
    raw = {
        "name": "made",
        "storage_path": str(folder),
        "data": {"format": {"name": "raw_abstracts", "path": "rows"}},
        "task": {"name": "classification", "positive_label": labels[0], "metric": "f1_binary"},
        "base_models": [{"source": source} for source in BASES],
        "train": {"epochs": 3},
        "search": {
            "num_trials": 3,
            "space": {
                "train.learning_rate": {"loguniform": [1e-4, 1e-2]},
                "lora.r": {"choice": [8, 16]},
            },
        },
        "publish": {"name": "made"},
        **changes,
    }
    return StudyConfig.model_validate(raw)


def label_results(accuracy: float, seed: int) -> tuple[LabelResults, np.ndarray[Any, Any]]:
    """Return answers to the same rows, of which a share of `accuracy` is right, and
    probabilities."""
    truth = np.random.default_rng(0).integers(0, 2, ROWS)
    rng = np.random.default_rng(seed)
    answers = np.where(rng.random(ROWS) < accuracy, truth, 1 - truth)
    matrix = np.eye(2, dtype=bool)[answers]
    confidence = (
        np.where(answers == truth, rng.beta(8, 1, ROWS), rng.beta(3, 2, ROWS))[:, None] / 2 + 0.5
    )
    return LabelResults(np.eye(2, dtype=bool)[truth], matrix, 0), np.where(
        matrix, confidence, 1 - confidence
    )


def metrics(
    accuracy: float, seed: int, labels: tuple[str, str] = LABELS
) -> tuple[Metrics, LabelResults]:
    answers, probabilities = label_results(accuracy, seed)
    truth, answer_classes = (
        side.argmax(axis=1).tolist() for side in (answers.truth, answers.predictions)
    )
    return single_label(truth, probabilities, answer_classes, labels, labels[0]), answers


def history(accuracies: list[float], seed: int) -> list[Evaluation]:
    return [
        Evaluation(
            epoch=epoch,
            step=10 * epoch,
            train_loss=1 / epoch,
            metrics=metrics(accuracy, seed + epoch)[0].values,
            is_best=accuracy > max(accuracies[: epoch - 1], default=0.0),
            epochs=float(epoch),
            is_last=epoch == len(accuracies),
            seconds=12.5 * epoch,
            tokens_per_s=1500.0,
        )
        for epoch, accuracy in enumerate(accuracies, start=1)
    ]


def record(base: int, number: int, **changes: Any) -> TrialRecord:
    name = BASES[base].rsplit(":", 1)[-1].rsplit("/", 1)[-1]
    values = {
        "trial": f"{name}-{number:03d}",
        "base_model": BASES[base],
        "base": base,
        "number": number,
        "settings": {
            "train.learning_rate": 1e-4 * 3 ** (number + base),
            "lora.r": 8 if number % 2 else 16,
        },
        "status": "finished",
        "started_at": 1.7e9,
        "first_step_at": 1.7e9 + 2,
        "num_parameters": 10**7 * (1 + 5 * base),
        "num_trainable": 10**5,
    }
    return TrialRecord.model_validate({**values, **changes})


def trials(num_each: int = 3, num_failed: int = 0) -> Trials:
    histories: Trials = []
    for base in range(len(BASES)):
        for number in range(num_each):
            accuracy = 0.9 - 0.02 * number - 0.1 * base
            histories.append(
                (
                    record(base, number),
                    history([accuracy - 0.05, accuracy, accuracy - 0.01], 10 * base + 100 * number),
                )
            )
    return histories + [
        (record(0, num_each + at, status="failed", error="loss is not a number"), [])
        for at in range(num_failed)
    ]


def board(
    histories: Trials, *, labels: tuple[str, str] = LABELS, close: bool = False
) -> Leaderboard:
    """Return a leaderboard with the best trial of each base model as a finalist. With `close`,
    their answers are so alike that they tie."""
    entries = [entry_of(trial, rows, "f1_binary") for trial, rows in histories]
    candidates = [
        _contender(entry, 0.9 if close else 0.9 - 0.15 * place, 40 + place, labels)
        for place, entry in enumerate(leaderboard.finalists(entries, "f1_binary", 1))
    ]
    references = [_contender(Entry(name="majority", kind="reference"), 0.5, 60, labels)]
    return leaderboard.conclude("made", "f1_binary", entries, candidates, references, 1)


def _contender(entry: Entry, accuracy: float, seed: int, labels: tuple[str, str]) -> Contender:
    validation, test = metrics(accuracy, seed, labels), metrics(accuracy - 0.01, seed + 1, labels)
    return leaderboard.contender(
        entry, "f1_binary", validation=validation, test=test, ms_per_row=3.5
    )


def analysis(winner: str, labels: tuple[str, str] = LABELS, column: str = "length") -> Analysis:
    rule = AbstentionRecord(precision=0.95, level=0.9, threshold=0.9, coverage=0.7)
    calibration = CalibrationRecord(temperature=1.4, abstention=rule, num_rows=ROWS)
    columns = {column: [("short", "middle", "long")[row % 3] for row in range(ROWS)]}

    def split(name: Any, seed: int) -> analyses.SplitAnalysis:
        answers, probabilities = label_results(0.9, seed)
        split_predictions = SplitResults(
            [f"row-{row}" for row in range(ROWS)], answers, probabilities, columns
        )
        return examine(
            name,
            split_predictions,
            calibration,
            labels=labels,
            multi_label=False,
            metric="f1_binary",
        )

    model = ModelAnalysis(winner, calibration, split("validation", 40), split("test", 41))
    return Analysis("made", labels, False, winner, (model,))


def run(
    folder: Path,
    *,
    histories: Trials | None = None,
    labels: tuple[str, str] = LABELS,
    column: str = "length",
    with_analysis: bool = True,
    close: bool = False,
    edit: Callable[[Leaderboard], Leaderboard] = lambda board: board,
    **changes: Any,
) -> Run:
    """Write a run that has ended, with the files that a study writes."""
    study_config = study(folder, labels, **changes)
    histories = trials() if histories is None else histories
    new_run = Run.start(study_config)
    for trial, rows in histories:
        new_run.write(trial)
        files.write(new_run.trial_dir(trial.trial) / HISTORY, dump_history(rows))
    ranking = edit(board(histories, labels=labels, close=close))
    checkpoint_path = str(new_run.checkpoint(ranking.winner, ranking.best.step or 0))
    entries = tuple(
        replace(entry, checkpoint=checkpoint_path) if entry.name == ranking.winner else entry
        for entry in ranking.entries
    )
    ranking = replace(ranking, entries=entries)
    files.write(new_run.folder / "leaderboard.json", leaderboard_files.to_json(ranking).encode())
    if with_analysis:
        files.write(
            new_run.folder / "analysis.json",
            analyses.to_json(analysis(ranking.winner, labels, column)),
        )
    _checkpoint(new_run, study_config, ranking.best, labels)
    return new_run


def _checkpoint(
    new_run: Run, study_config: StudyConfig, best: Entry, labels: tuple[str, str]
) -> None:
    audit = {
        "num_rows": 3 * ROWS,
        "num_empty": 1,
        "labels": {labels[0]: 250, labels[1]: 230},
        "splits": {"train": ROWS, "validation": ROWS, "test": ROWS},
        "tokens": {
            best.base_model: {
                "mean": 80.0,
                "median": 75.0,
                "p95": 150.0,
                "longest": 700,
                "max_length": 512,
                "num_over": 3,
            }
        },
        "exact_groups": 4,
        "exact_rows": 8,
        "near_groups": 1,
        "near_rows": 2,
        "given_across": 0,
        "conflicting_texts": 2,
        "conflicting_rows": 4,
        "accuracy_ceiling": 0.99,
        "majority_label": labels[0],
        "majority_accuracy": 0.52,
        "majority_f1_macro": 0.34,
    }

    def fill(filling: Path) -> None:
        files.write(filling / "audit.json", json.dumps(audit).encode())
        files.write(
            filling / "metrics.json",
            json.dumps({"split": "validation", **asdict(metrics(0.9, 40, labels)[0])}).encode(),
        )

    manifest = Manifest(
        task=TaskRecord(
            options={"name": "classification"}, state={"labels": list(labels), "thresholds": None}
        ),
        base=BaseRecord(source=best.base_model, revision="1", weight_hash="ab" * 32, family="bert"),
        trial=study_config.trial(study_config.base_models[best.base or 0]).model_dump(mode="json"),
        data_fingerprint="cd" * 32,
        split_fingerprint="ef" * 32,
        cursor={"epoch": best.epoch or 0, "step": best.step or 0},
        metrics=dict(best.validation),
        precision=PrecisionRecord(actual="fp32", setting="auto"),
        seed=0,
        versions={"medray": "0"},
        git_commit="0" * 40,
        probe=Probe(texts=(), outputs=()),
    )
    save(new_run.checkpoint(best.name, best.step or 0), fill, manifest)
