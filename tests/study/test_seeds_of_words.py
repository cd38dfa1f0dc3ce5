"""The reference documents' studies of heads and of medical assistants, with tiny random models of
their architecture classes, up to the release."""

import csv
from pathlib import Path

import pytest
from support import in_process, tiny

from medray.config.load import load_study
from medray.study import preflight
from medray.study.study import Outcome
from medray.types import Message

pytestmark = pytest.mark.slow
WORSE = ("publish.allow_worse=true",)  # than TF-IDF, as models of random weights are
STUDIES = Path(__file__).parents[2] / "jobs" / "studies"


def run(folder: Path, name: str, data: Path, families: tuple[str, ...], *settings: str) -> Outcome:
    sources = ", ".join(f"{{source: {tiny.base(folder, family)}}}" for family in families)
    study = load_study(
        [STUDIES / f"{name}.yaml"],
        [
            f"base_models=[{sources}]",
            f"data.format.path={data}",
            f"storage_path={folder / 'runs'}",
            "task.max_length=100",
            "model.precision=fp32",
            "resources.cpus_per_worker=1",
            *settings,
        ],
    )
    preflight.check(study)
    return in_process.run(study)


@pytest.mark.document(
    "000",
    "Phi-2 becomes a sequence classifier with LoRA",
    where="`jobs/studies/seed_000_phi2.yaml`",
)
def test_the_head_on_phi_is_trained_and_published(tmp_path: Path) -> None:
    outcome = run(
        tmp_path, "seed_000_phi2", tiny.raw_abstracts(tmp_path), ("phi",), "train.epochs=1"
    )
    assert outcome.release is not None
    assert outcome.release.reference == "cancer@1"
    assert outcome.release.load().predict([]) == []


@pytest.mark.document(
    "001",
    "three models with the same hyperparameters on the same rows",
    where="`jobs/studies/seed_001_distilbert.yaml`",
)
@pytest.mark.document(
    "001",
    "training loss, validation loss, accuracy and F1 of each epoch",
    where="`history.csv`",
)
def test_three_encoders_with_equal_settings_have_a_table_of_epochs_and_the_best_is_published(
    tmp_path: Path,
) -> None:
    data = tiny.raw_abstracts(tmp_path, num_rows=60)
    outcome = run(
        tmp_path,
        "seed_001_distilbert",
        data,
        ("roberta", "bert", "distilbert"),
        "train.epochs=2",
        *WORSE,
    )
    trials = {entry.name: entry for entry in outcome.board.entries if entry.kind == "trial"}
    assert {Path(entry.base_model).name for entry in trials.values()} == {
        "tiny-roberta",
        "tiny-bert",
        "tiny-distilbert",
    }
    rows = list(csv.DictReader((outcome.run.folder / "history.csv").open()))
    assert sorted((row["trial"], row["epoch"]) for row in rows) == [
        (trial, epoch) for trial in sorted(trials) for epoch in "12"
    ]
    columns = ("train_loss", "validation_loss", "validation_accuracy", "validation_f1_binary")
    assert all(float(row[column]) >= 0 for row in rows for column in columns)
    assert outcome.release is not None
    assert outcome.release.reference == "cancer@1"


@pytest.mark.parametrize(
    ("name", "family", "nf4"),
    [("seed_003_phi4_mini", "phi3", True), ("seed_003_smollm", "llama", False)],
)
@pytest.mark.document(
    "003",
    "Phi-4-mini and SmolLM are fine-tuned",
    where="`jobs/studies/seed_003_phi4_mini.yaml`, `seed_003_smollm.yaml`",
)
@pytest.mark.document(
    "003",
    "numbered checkpoints and a final model",
    where="`checkpoints/step-000006`, a release",
)
def test_medical_assistants_are_trained_compared_with_their_base_and_published(
    tmp_path: Path, name: str, family: str, nf4: bool
) -> None:
    short = [
        "task.max_new_tokens=4",
        "train.max_steps=4",
        "train.evaluate_every_steps=2",
        "data.evaluation_rows=4",
        "task.system=the study",
    ]
    outcome = run(tmp_path, name, tiny.instructions(tmp_path), (family,), *short)
    rows = {entry.name: entry for entry in outcome.board.entries if entry.kind == "reference"}
    assert rows.keys() == {f"{tmp_path / f'tiny-{family}'}, untuned"}
    best = outcome.board.best
    assert bool(best.validation_merged) == nf4
    assert sorted(path.name for path in Path(str(best.checkpoint)).parent.iterdir()) == [
        "step-000002",
        "step-000004",
    ]
    assert outcome.release is not None
    assert outcome.release.reference == "medical-assistant@1"
    release = outcome.release.load()
    assert release.manifest.quantization == ("nf4" if nf4 else "none")
    layers = {
        key.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1]
        for key in release.model.network.state_dict()
        if ".lora_" in key
    }
    assert layers == ({"qkv_proj", "o_proj"} if nf4 else {"q_proj", "k_proj", "v_proj", "o_proj"})
    assert release.task.prompt([Message("user", "fever")], release.engine.tokenizer, 4)
