"""What a base model may lack and may not lack. Only the seed decides about new weights."""

import json
import logging
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import transformers
from safetensors.torch import load_file
from support import tiny

from medray.config.trial import LoraConfig, ModelOptions
from medray.engines.transformers import TransformersEngine
from medray.errors import ArtifactError, ConfigError
from medray.models import sources
from medray.models.architecture import check_targets
from medray.models.build import BuiltModel, build, merge_and_export, save
from medray.models.families import family_of, targets
from medray.types import Head

HEAD = Head(("negative", "positive", "unclear"))
ROWS = [[5, 6, 7], [8, 9, 10, 11]]


def make(path: Path, **others: Any) -> BuiltModel:
    settings: dict[str, Any] = {
        "head": HEAD,
        "model": ModelOptions(),
        "lora": LoraConfig(),
        "seed": 1,
    } | others
    return build(sources.resolve(str(path)), **settings)


def same_weights(one: BuiltModel, other: BuiltModel) -> bool:
    pairs = zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


def test_the_seed_alone_decides_what_is_drawn_and_the_callers_random_numbers_go_on(
    tmp_path: Path,
) -> None:
    path = tiny.base(tmp_path)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = make(path)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert same_weights(one, make(path))
    assert not same_weights(one, make(path, seed=2))


def test_a_base_without_a_pooler_gets_one_that_is_trained_and_saved(tmp_path: Path) -> None:
    path = tiny.base(tmp_path)
    transformers.BertForMaskedLM(transformers.BertConfig.from_pretrained(path)).save_pretrained(
        path
    )
    model = make(path)
    assert model.family.head_modules == ("classifier", "bert.pooler")
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if parameter.requires_grad and "pooler" in name:
                parameter.add_(1.0)
    save(model, tmp_path / "saved")
    again = make(path, adapter_dir=tmp_path / "saved", seed=7)
    engines = [
        TransformersEngine(each, precision="fp32", token_budget=100) for each in (model, again)
    ]
    assert abs(engines[0].logits(ROWS) - engines[1].logits(ROWS)).max() < 1e-6


@pytest.mark.parametrize("num_labels", [3, 5])
def test_a_base_that_brings_a_head_of_its_own_is_refused(tmp_path: Path, num_labels: int) -> None:
    path = tiny.base(tmp_path)
    config = transformers.BertConfig.from_pretrained(path, num_labels=num_labels)
    transformers.BertForSequenceClassification(config).save_pretrained(path)
    with pytest.raises(
        ArtifactError, match=r"has a head already \(classifier\.bias, classifier\.weight\)"
    ):
        make(path)


def test_a_base_whose_weights_have_another_size_is_refused(tmp_path: Path) -> None:
    path = tiny.base(tmp_path)
    config = transformers.BertConfig.from_pretrained(path)
    config.intermediate_size = 40
    config.save_pretrained(path)
    with pytest.raises(
        ArtifactError, match=r"another shape: bert\.encoder\.layer\.0\.intermediate\.dense\.bias"
    ):
        make(path)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_base_of_bin_files_is_read_without_running_what_is_in_them(
    tmp_path: Path, quantization: Literal["none", "nf4"]
) -> None:
    path, model = tiny.base(tmp_path), ModelOptions(quantization=quantization)
    before = make(path, model=model)
    torch.save(load_file(str(path / "model.safetensors")), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    assert same_weights(make(path, model=model), before)

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "attacked",))

    torch.save({"weight": Attack()}, path / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="contain more than tensors"):
        make(path, model=model)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_base_that_is_stored_quantized_is_refused(
    tmp_path: Path, quantization: Literal["none", "nf4"]
) -> None:
    path = tiny.base(tmp_path)
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (path / "config.json").write_text(
        json.dumps(
            json.loads((path / "config.json").read_text()) | {"quantization_config": settings}
        )
    )
    for attempt in (
        lambda: make(path, model=ModelOptions(quantization=quantization)),
        lambda: check_targets(path, LoraConfig()),
    ):
        with pytest.raises(
            ArtifactError,
            match=r"quantized already \(bitsandbytes\); use the model in full precision",
        ):
            attempt()


def test_a_setting_of_4_bits_without_them_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny.base(tmp_path)
    make(path, model=ModelOptions(quantization="nf4", double_quantization=False))
    assert not caplog.messages
    make(path, model=ModelOptions(double_quantization=False))
    assert caplog.messages == [
        "model.double_quantization: false has no effect with model.quantization: none"
    ]


def test_weights_cut_short_are_refused(tmp_path: Path) -> None:
    path = tiny.base(tmp_path)
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="cannot be loaded as ModelForSequenceClassification"):
        make(path)


def test_a_base_that_needs_foreign_code_is_refused(tmp_path: Path) -> None:
    path = tiny.base(tmp_path)
    (path / "config.json").write_text(
        '{"model_type": "foreign", "auto_map": {"AutoConfig": "code.Config"}}'
    )
    with pytest.raises(ArtifactError, match="without running code from it"):
        make(path)
    with pytest.raises(ArtifactError, match="without running code from it"):
        check_targets(path, LoraConfig())


def test_a_tokenizer_that_cannot_pad_pads_with_its_end_of_sequence(tmp_path: Path) -> None:
    path = tiny.base(tmp_path, "llama")
    tokens = tiny.tokenizer("llama")
    tokens.pad_token = None
    tokens.save_pretrained(path)
    config = transformers.LlamaConfig.from_pretrained(path)
    config.pad_token_id = None
    config.save_pretrained(path)
    model = make(path)
    assert model.tokenizer.pad_token == "<|im_end|>"
    assert model.network.config.pad_token_id == tokens.eos_token_id
    save(model, tmp_path / "saved")
    assert make(path, adapter_dir=tmp_path / "saved").tokenizer.pad_token == "<|im_end|>"
    tokens.eos_token = None
    tokens.save_pretrained(path)
    with pytest.raises(ArtifactError, match="neither a pad token nor an end-of-sequence token"):
        make(path)


def test_without_an_adapter_the_base_is_as_it_is(tmp_path: Path) -> None:
    model = make(tiny.base(tmp_path, "llama"), head=None, lora=None)
    assert model.num_trainable == 0
    assert model.num_parameters == sum(
        parameter.numel() for parameter in model.network.parameters()
    )
    assert TransformersEngine(model, precision="fp32", token_budget=100).score(
        [[5]], [[6], [7]]
    ).shape == (1, 2)
    with pytest.raises(ConfigError, match="no adapter to save"):
        save(model, tmp_path / "saved")


def test_the_head_is_counted_once(tmp_path: Path) -> None:
    path = tiny.base(tmp_path)
    bare, with_lora = make(path, lora=None), make(path, lora=LoraConfig(r=2))
    num_lora = sum(
        parameter.numel()
        for name, parameter in with_lora.network.named_parameters()
        if ".lora_" in name
    )
    assert with_lora.num_parameters == bare.num_parameters + num_lora
    assert with_lora.num_trainable == num_lora + 3 * 32 + 3


def test_transformers_says_nothing_about_the_expected_head(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, before = tiny.base(tmp_path), logging.getLogger("transformers").level
    capfd.readouterr()
    model = make(path)
    merge_and_export(model, tmp_path / "merged")
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("transformers").level == before


def test_of_nested_lists_the_layers_are_the_outer_one(caplog: pytest.LogCaptureFixture) -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = torch.nn.Linear(2, 2)
            self.experts = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(5))

    model = torch.nn.Module()
    model.body = torch.nn.ModuleList(Layer() for _ in range(2))
    family = family_of(model, "experts")
    assert family.layers_path == "body"
    assert targets(family, model, LoraConfig(targets=("query", "experts.3"), top_layers=1)) == [
        "body.1.query",
        "body.1.experts.3",
    ]
    with pytest.raises(ConfigError, match="no list of layers"):
        family_of(torch.nn.Module(), "nothing")
