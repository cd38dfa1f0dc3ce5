"""The folder of an adapter is a plain PEFT folder with the same bytes every time, and is read
without trust."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support import tiny
from transformers import AutoModelForSequenceClassification

from medray.config.trial import LoraConfig, ModelOptions
from medray.engines.transformers import TransformersEngine
from medray.errors import ArtifactError
from medray.models import sources
from medray.models.build import BuiltModel, build, merge, merge_and_export, save
from medray.types import Head

HEAD = Head(("negative", "positive", "unclear"))
ROWS = [[5, 6, 7], [8, 9, 10, 11]]


def make(path: Path, lora: LoraConfig | None = None, **others: Any) -> BuiltModel:
    return build(
        sources.resolve(str(path)),
        others.pop("head", HEAD),
        ModelOptions(),
        lora or LoraConfig(r=4),
        **others,
    )


def disturb(model: BuiltModel) -> BuiltModel:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def logits(model: BuiltModel) -> Any:
    return TransformersEngine(model, precision="fp32", token_budget=100).logits(ROWS)


def change(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.document(
    "001",
    "texts are tokenized and LoRA adapters are put in by PEFT",
    where="`medray/models/adapter.py`",
)
def test_plain_peft_reads_the_folder(tmp_path: Path) -> None:
    path = tiny.base(tmp_path)
    model = disturb(make(path))
    save(model, tmp_path / "saved")
    plain = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(path, num_labels=3), tmp_path / "saved"
    ).eval()
    with torch.inference_mode():
        plain_logits = torch.cat([plain(torch.tensor([row])).logits for row in ROWS]).numpy()
    assert abs(plain_logits - logits(model)).max() < 1e-5


def test_rank_scale_and_targets_travel_with_the_adapter(tmp_path: Path) -> None:
    path = tiny.base(
        tmp_path, num_hidden_layers=5
    )  # more than 20 targets, from where on PEFT shortens the list
    model = disturb(make(path, LoraConfig(r=3, alpha=7.0, rslora=True, top_layers=4)))
    save(model, tmp_path / "saved")
    for lora in (LoraConfig(), None):
        again = build(
            model.base, HEAD, ModelOptions(), lora, adapter_dir=tmp_path / "saved", seed=9
        )
        assert abs(logits(again) - logits(model)).max() < 1e-6
    layers = {
        name.split(".layer.")[1][0]
        for name, _ in again.network.named_parameters()
        if ".lora_" in name
    }
    assert layers == {"1", "2", "3", "4"}


def test_saving_twice_gives_the_same_bytes_even_after_a_reload(tmp_path: Path) -> None:
    path = tiny.base(tmp_path)
    model = disturb(make(path, LoraConfig(dtype="bf16")))
    save(model, tmp_path / "one")
    save(make(path, adapter_dir=tmp_path / "one"), tmp_path / "two")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    settings = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(settings["target_modules"])


def test_a_head_that_was_not_saved_is_named(tmp_path: Path) -> None:
    path = tiny.base(tmp_path, "distilbert")
    save(make(path), tmp_path / "saved")
    weights = tmp_path / "saved" / "adapter_model.safetensors"
    whole = load_file(str(weights))
    save_file(
        {name: tensor for name, tensor in whole.items() if "pre_classifier" not in name},
        str(weights),
    )
    with pytest.raises(
        ArtifactError, match=r"the checkpoint has no head; it lacks .*pre_classifier\.bias"
    ):
        make(path, adapter_dir=tmp_path / "saved")
    change(tmp_path / "saved", modules_to_save=["classifier"])
    with pytest.raises(
        ArtifactError,
        match=r"the checkpoint has no head; modules_to_save lacks pre_classifier",
    ):
        make(path, adapter_dir=tmp_path / "saved")


def test_a_folder_that_does_not_fit_says_where(tmp_path: Path) -> None:
    path = tiny.base(tmp_path)
    save(make(path), tmp_path / "saved")
    with pytest.raises(
        ArtifactError,
        match=r"classifier\.weight has the shape \[3, 32\]; the model needs \[2, 32\]",
    ):
        make(path, adapter_dir=tmp_path / "saved", head=Head(("a", "b")))
    with pytest.raises(ArtifactError, match="does not fit the base model"):
        make(
            tiny.base(tmp_path, "roberta", num_hidden_layers=1),
            adapter_dir=other_targets(tmp_path / "saved", tmp_path / "other"),
        )
    weights = tmp_path / "saved" / "adapter_model.safetensors"
    save_file(load_file(str(weights)) | {"stranger": torch.zeros(1)}, str(weights))
    with pytest.raises(ArtifactError, match="has stranger"):
        make(path, adapter_dir=tmp_path / "saved")
    weights.write_bytes(b"not safetensors")
    with pytest.raises(ArtifactError, match="cannot be read as safetensors"):
        make(path, adapter_dir=tmp_path / "saved")


def other_targets(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy)
    change(copy, target_modules=["nothing_like_this"])
    return copy


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "pissa"},
        {"megatron_config": {"a": 1}, "megatron_core": "os"},
        {"peft_type": "IA3"},
    ],
)
def test_a_configuration_that_would_change_the_base_or_import_a_module_is_refused(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    path = tiny.base(tmp_path)
    save(make(path), tmp_path / "saved")
    change(tmp_path / "saved", **settings)
    with pytest.raises(ArtifactError, match=r"adapter_config\.json: "):
        make(path, adapter_dir=tmp_path / "saved")


def test_no_path_of_this_machine_is_written(tmp_path: Path) -> None:
    path = tiny.base(tmp_path / "secret-place")
    model = build(sources.Base("org/model", "abc", path, ""), HEAD, ModelOptions(), LoraConfig())
    save(model, tmp_path / "saved")
    merge_and_export(model, tmp_path / "merged")
    for file in (
        file
        for folder in ("saved", "merged")
        for file in (tmp_path / folder).rglob("*")
        if file.is_file()
    ):
        assert b"secret-place" not in file.read_bytes(), file
    assert json.loads((tmp_path / "saved" / "adapter_config.json").read_text())["revision"] == "abc"


def test_merging_a_bf16_adapter_rounds_nothing_more(tmp_path: Path) -> None:
    model = disturb(make(tiny.base(tmp_path), LoraConfig(r=4, dtype="bf16")))
    save(model, tmp_path / "saved")
    exact = make(tmp_path / "tiny-bert", adapter_dir=tmp_path / "saved")
    for name, parameter in exact.network.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    before = logits(exact)
    model = merge(model)
    assert abs(logits(model) - before).max() < 1e-5
