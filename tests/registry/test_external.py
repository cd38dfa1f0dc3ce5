"""Releases without a trial: an adapter from other software, and a base model."""

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from support import tiny
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from medray import cli
from medray.config.load import dump_settings
from medray.registry import evaluate
from medray.registry.external import ImportConfig, import_adapter
from medray.registry.registry import Registry
from medray.types import Example

LABELS = ["other", "cancer"]  # not in the order that a study would have them in
TEXTS = ["tumour of the lung", "blood pressure after therapy"]


def elsewhere(folder: Path, base: Path) -> tuple[Path, np.ndarray]:
    """Return the adapter folder of a script with plain PEFT, and its model's predictions."""
    torch.manual_seed(3)
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model = peft.get_peft_model(
        plain, peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model.save_pretrained(folder / "checkpoint-300")
    with torch.no_grad():
        logits = model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    return folder / "checkpoint-300", logits.softmax(-1).numpy()


def settings(base: Path, *more: str) -> list[str]:
    return [
        f"model.source={base}",
        "task.name=classification",
        "task.positive_label=cancer",
        f"labels=[{', '.join(LABELS)}]",
        *more,
    ]


@pytest.mark.document("000", "a PEFT checkpoint is loaded for inference", where="`medray import`")
def test_an_adapter_from_elsewhere_answers_as_it_did_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny.base(tmp_path)
    folder, expectation = elsewhere(tmp_path, base)
    store = ["--storage-path", str(tmp_path / "runs")]
    assert (
        cli.main(["import", str(folder), "taken", *settings(base), "--alias", "best", *store]) == 0
    )
    assert capsys.readouterr().out.splitlines()[-1] == "taken@1 is taken@best"
    release = Registry(str(tmp_path / "runs")).resolve("taken@best")
    release.verify()
    release_model = release.load()
    assert release_model.task.labels == tuple(LABELS)
    predictions = release_model.predict(
        [Example(str(number), text) for number, text in enumerate(TEXTS)]
    )
    assert np.allclose([row.probabilities for row in predictions], expectation, atol=1e-6)
    release.export(tmp_path / "card", merged=False)
    assert (
        "training: by other software: imported from an adapter's folder"
        in (tmp_path / "card" / "README.md").read_text()
    )


def test_an_import_without_the_length_of_its_training_warns_that_answers_may_differ(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tiny.base(tmp_path)
    folder, _ = elsewhere(tmp_path, base)
    for number, more in enumerate(([], ["task.max_length=64"])):
        caplog.clear()
        import_adapter(
            folder, ImportConfig.load(settings(base, *more)), tmp_path / f"taken-{number}"
        )
        assert ("uses 512 tokens, so answers may differ" in caplog.text) is (not more)
    study = tiny.study(tmp_path)
    evaluate.evaluate(
        str(tmp_path / "taken-1"),
        study.data,
        "test",
        storage_path=str(tmp_path),
        log_dir=tmp_path / "log",
    )
    assert (
        "was trained by other software, and its training rows are unknown; they may include some "
        "of these rows"
    ) in caplog.text


def test_what_a_folder_does_not_say_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny.base(tmp_path)
    folder, _ = elsewhere(tmp_path, base)
    store = ["--storage-path", str(tmp_path / "runs")]
    for options, message in (
        (settings(base)[1:3], "model: is required"),
        (settings(base)[:1], "task: is required"),
        (settings(base)[:3], "labels: task 'classification' needs them"),
        ([*settings(base)[:3], "labels=[cancer]"], "needs at least two"),
    ):
        assert cli.main(["import", str(folder), "taken", *options, *store]) != 0
        assert message in capsys.readouterr().err
    other = tiny.base(tmp_path / "other", hidden_size=64)
    assert cli.main(["import", str(folder), "taken", *settings(other), *store]) != 0
    assert "has the shape" in capsys.readouterr().err
    assert cli.main(["import", str(base), "taken", *settings(base), *store]) != 0
    assert (
        "has no adapter_config.json; name the folder of a PEFT adapter" in capsys.readouterr().err
    )
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert cli.main(["import", str(folder), "taken", *settings(base), *store]) != 0
    assert "medray reads no pickles" in capsys.readouterr().err
    assert not Registry(str(tmp_path / "runs")).names()


@pytest.mark.document(
    "001",
    "Phi-4 names diseases out of the box",
    where="`medray publish jobs/studies/seed_001_extract.yaml NAME`",
    how="the study names Phi-4-mini; Phi-4 is one setting away and takes a larger GPU",
)
def test_a_base_model_is_published_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tiny.choice_study(tmp_path, num_rows=60)
    path = tmp_path / "study.yaml"
    path.write_text(dump_settings(study))
    store = ["--storage-path", str(tmp_path / "runs")]
    assert cli.main(["publish", str(path), "plain", *store]) == 0
    release = Registry(str(tmp_path / "runs")).resolve("plain")
    evaluation = evaluate.evaluate_base_model(
        study.trial(study.base_models[0]), "validation", log_dir=tmp_path / "log"
    )
    manifest = json.loads((release.folder() / "manifest.json").read_text())
    assert manifest["metrics"] == pytest.approx(evaluation.metrics.values, abs=1e-6)
    assert release.record.calibration.num_rows == evaluation.metrics.num_rows
    again = evaluate.evaluate(
        "plain",
        study.data,
        "validation",
        storage_path=str(tmp_path / "runs"),
        log_dir=tmp_path / "log",
    )
    assert again.metrics.values == pytest.approx(evaluation.metrics.values, abs=1e-6)
    assert cli.main(["export", "plain", str(tmp_path / "adapter"), *store]) != 0
    assert "is a base model without an adapter; export it with --merged" in capsys.readouterr().err
    assert cli.main(["export", "plain", str(tmp_path / "whole"), "--merged", *store]) == 0
    assert "with no training" in (tmp_path / "whole" / "README.md").read_text()


def test_a_head_that_nobody_trained_is_not_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(dump_settings(tiny.study(tmp_path)))
    assert cli.main(["publish", str(path), "plain", "--storage-path", str(tmp_path / "runs")]) != 0
    assert (
        "adds a new head, which predicts nothing useful before training" in capsys.readouterr().err
    )
    assert (
        cli.main(
            [
                "publish",
                str(path),
                "plain",
                "--base",
                "elsewhere",
                "--storage-path",
                str(tmp_path / "runs"),
            ]
        )
        != 0
    )
    assert "base model 'elsewhere' is not in study" in capsys.readouterr().err
