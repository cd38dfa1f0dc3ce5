"""A token head is built, saved, loaded and merged like a head for rows, with one output per
token."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny

from medray.config.trial import LoraConfig, ModelOptions
from medray.engines.transformers import TransformersEngine
from medray.errors import ConfigError
from medray.models import sources
from medray.models.architecture import check_targets
from medray.models.build import BuiltModel, build, merge, merge_and_export, save
from medray.types import Head

HEAD = Head(("O", "B-Disease", "I-Disease"), per_token=True)
ROWS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [20, 21]]
HEADS = {
    "bert": ("classifier",),
    "roberta": ("classifier",),
    "distilbert": ("classifier",),
    "llama": ("score",),
    "phi3": ("score",),
    "modernbert": ("classifier", "head"),
    "qwen3": ("score",),
}


def make(folder: Path, family: str, quantization: str = "none") -> BuiltModel:
    """Build a model as after training: no adapter is zero, and the head is not the initial one."""
    options = ModelOptions(quantization=quantization)
    model = build(
        sources.resolve(str(tiny.base(folder, family))), HEAD, options, LoraConfig(), seed=1
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def outputs(model: BuiltModel, budget: int = 1000) -> list[np.ndarray]:
    return TransformersEngine(model, precision="fp32", token_budget=budget).token_logits(ROWS)


def apart(one: list[np.ndarray], two: list[np.ndarray]) -> float:
    return max(float(np.abs(first - second).max()) for first, second in zip(one, two, strict=True))


@pytest.mark.parametrize("family", HEADS)
def test_every_token_has_an_output_whatever_stands_beside_its_row(
    tmp_path: Path, family: str
) -> None:
    model = make(tmp_path, family)
    logits = outputs(model)
    assert [row.shape for row in logits] == [(len(row), 3) for row in ROWS]
    assert apart(logits, outputs(model, budget=1)) < 1e-5
    assert model.family.head_modules == HEADS[family]
    trainable_modules = {
        name.split(".")[2]
        for name, parameter in model.network.named_parameters()
        if parameter.requires_grad and "lora_" not in name
    }
    assert trainable_modules == set(HEADS[family])
    assert {
        module.p
        for name, module in model.network.named_modules()
        if isinstance(module, torch.nn.Dropout) and "lora" not in name
    } <= {0.0}


@pytest.mark.parametrize("family", HEADS)
def test_what_is_saved_comes_back_and_merges_into_the_same_outputs(
    tmp_path: Path, family: str
) -> None:
    model = make(tmp_path, family)
    before = outputs(model)
    save(model, tmp_path / "saved")
    again = build(
        model.base, HEAD, ModelOptions(), LoraConfig(), adapter_dir=tmp_path / "saved", seed=9
    )
    assert apart(outputs(again), before) == 0.0
    again = merge(again)
    assert apart(outputs(again), before) < 1e-5


def test_a_merged_export_names_its_tags_to_plain_transformers(tmp_path: Path) -> None:
    from transformers import pipeline

    model = make(tmp_path, "bert")
    merge_and_export(model, tmp_path / "merged")
    text = "tumour with fever"
    words = pipeline("token-classification", model=str(tmp_path / "merged"), ignore_labels=[])(text)
    (rows,) = TransformersEngine(model, precision="fp32", token_budget=100).token_logits(
        [model.tokenizer(text)["input_ids"]]
    )
    assert [word["entity"] for word in words] == [
        HEAD.labels[place] for place in rows[1:-1].argmax(axis=1)
    ]


def test_a_base_in_4_bits_keeps_its_token_head_whole(tmp_path: Path) -> None:
    model = make(tmp_path, "distilbert", "nf4")
    before = outputs(model)
    save(model, tmp_path / "saved")
    again = build(
        model.base,
        HEAD,
        ModelOptions(quantization="nf4"),
        LoraConfig(),
        adapter_dir=tmp_path / "saved",
        seed=9,
    )
    assert apart(outputs(again), before) < 1e-6
    assert apart(outputs(merge(again)), before) < 1e-4


def test_a_head_is_asked_only_for_what_it_gives(tmp_path: Path) -> None:
    source = sources.resolve(str(tiny.base(tmp_path, "bert")))
    tokens, rows = (
        build(source, head, ModelOptions(), LoraConfig()) for head in (HEAD, Head(HEAD.labels))
    )
    with pytest.raises(
        ConfigError, match="no outputs of rows; it was built with a head that reads tokens"
    ):
        TransformersEngine(tokens, precision="fp32", token_budget=100).logits(ROWS)
    with pytest.raises(
        ConfigError, match="no outputs of tokens; it was built with a head that reads rows"
    ):
        TransformersEngine(rows, precision="fp32", token_budget=100).token_logits(ROWS)


def test_a_family_without_such_a_head_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model type 'opt' has no token head in transformers"):
        check_targets(tiny.base(tmp_path, "opt"), LoraConfig(), "token head")
