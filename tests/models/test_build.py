"""One function builds models for training and inference. A saved model comes back with its head,
labels and pad token."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny
from transformers import AutoModelForSequenceClassification

from medray.config.trial import LoraConfig, ModelOptions, Precision
from medray.engines.transformers import TransformersEngine
from medray.errors import ArtifactError, ConfigError
from medray.models import sources
from medray.models.architecture import check_targets
from medray.models.build import BuiltModel, build, load_tokenizer, merge, merge_and_export, save
from medray.models.libraries import LoraLayer
from medray.types import Head

HEAD = Head(("negative", "positive", "unclear"))
ROWS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [20, 21]]
TEXTS = [
    "tumour with metastasis in the nodes",
    "fever and infection",
    "glucose after therapy was no failure",
]
FAMILIES = ["bert", "roberta", "distilbert", "llama", "mistral", "phi", "phi3", "opt"]
FAMILIES += ["modernbert", "qwen3_5_text", "gemma3_text"]


def make(folder: Path, family: str, *, head: Head | None = HEAD, **lora: object) -> BuiltModel:
    return build(
        sources.resolve(str(tiny.base(folder, family))),
        head,
        ModelOptions(),
        LoraConfig(**lora),
        seed=1,
    )


def disturb(model: BuiltModel) -> BuiltModel:
    """Change the weights as training would: no adapter is zero, and the head is not the initial
    one."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def logits(model: BuiltModel, rows: list[list[int]] = ROWS) -> np.ndarray:
    return TransformersEngine(model, precision="fp32", token_budget=1000).logits(rows)


def lora_layers(model: BuiltModel) -> set[str]:
    return {
        name.split(".base_layer")[0].removeprefix("base_model.model.")
        for name, _ in model.network.named_modules()
        if name.endswith("base_layer")
    }


def test_saved_models_give_the_same_logits_in_a_new_process(tmp_path: Path) -> None:
    before = {}
    for family in FAMILIES:
        model = disturb(make(tmp_path, family))
        before[family] = logits(model)
        save(model, tmp_path / "saved" / family)
        config = json.loads((tmp_path / "saved" / family / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == model.base.source
    script = f"""
import json
from pathlib import Path
from medray.config.trial import LoraConfig, ModelOptions
from medray.engines.transformers import TransformersEngine
from medray.models import sources
from medray.models.build import build
from medray.tasks.base.protocol import Head
folder, result = Path({str(tmp_path)!r}), {{}}
for family in {FAMILIES!r}:
    base = sources.resolve(str(folder / f"tiny-{{family}}"))
    adapter_dir = folder / "saved" / family
    head = Head({HEAD.labels!r})
    model = build(base, head, ModelOptions(), LoraConfig(), adapter_dir=adapter_dir, seed=99)
    engine = TransformersEngine(model, precision="fp32", token_budget=1000)
    result[family] = engine.logits({ROWS!r}).tolist()
print(json.dumps(result))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    for family, rows in json.loads(result.stdout).items():
        assert np.abs(np.array(rows) - before.pop(family)).max() < 1e-5
    assert not before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.document(
    "001",
    "the merged model is saved",
    where="`medray export NAME FOLDER --merged`",
)
def test_merging_changes_no_logit_and_plain_transformers_names_the_same_labels(
    tmp_path: Path, family: str
) -> None:
    from transformers import pipeline

    model = disturb(make(tmp_path, family))
    tokens = [model.tokenizer(text)["input_ids"] for text in TEXTS]
    before = logits(model, tokens)
    (tmp_path / "saved").mkdir()
    save(model, tmp_path / "saved")
    merge_and_export(model, tmp_path / "merged")
    assert not any(isinstance(module, LoraLayer) for module in model.network.modules()), (
        "an export merges in place, without a copy of the model"
    )
    again = build(model.base, HEAD, ModelOptions(), LoraConfig(), adapter_dir=tmp_path / "saved")
    plain = merge(again).network.eval()
    with torch.inference_mode():
        after = np.concatenate([plain(torch.tensor([ids])).logits.numpy() for ids in tokens])
    assert np.abs(after - before).max() < 1e-5
    answers = pipeline("text-classification", model=str(tmp_path / "merged"))(TEXTS)
    assert [answer["label"] for answer in answers] == [HEAD.labels[row.argmax()] for row in before]


@pytest.mark.parametrize(
    ("base_type", "precision", "dtype"),
    [
        ("bfloat16", None, torch.bfloat16),
        ("float32", None, torch.float32),
        ("bfloat16", "fp32", torch.float32),
    ],
)
def test_an_export_has_the_type_of_its_base_unless_another_is_requested(
    tmp_path: Path, base_type: str, precision: Precision | None, dtype: torch.dtype
) -> None:
    base = tiny.base(tmp_path, "llama")
    settings = json.loads((base / "config.json").read_text()) | {"dtype": base_type}
    (base / "config.json").write_text(json.dumps(settings))
    model = disturb(build(sources.resolve(str(base)), HEAD, ModelOptions(), LoraConfig()))
    tokens = [model.tokenizer(text)["input_ids"] for text in TEXTS]
    before = logits(model, tokens)
    merge_and_export(model, tmp_path / "merged", precision)
    (weights,) = (tmp_path / "merged").glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(weights).values()} == {dtype}
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert plain.dtype == dtype
    with torch.inference_mode():
        after = torch.cat([plain(torch.tensor([ids])).logits.float() for ids in tokens])
    assert np.abs(after.numpy() - before).max() < (1e-5 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_without_its_head_is_refused(tmp_path: Path, family: str) -> None:
    model = make(tmp_path, family)
    (tmp_path / "saved").mkdir()
    save(model, tmp_path / "saved")
    path = tmp_path / "saved" / "adapter_model.safetensors"
    state = load_file(str(path))
    heads = [name for name in state if any(head in name for head in model.family.head_modules)]
    assert heads
    save_file({name: tensor for name, tensor in state.items() if name not in heads}, str(path))
    with pytest.raises(ArtifactError, match=r"lacks .*(classifier|score)"):
        build(model.base, HEAD, ModelOptions(), LoraConfig(), adapter_dir=tmp_path / "saved")


def test_a_base_that_lacks_more_than_the_head_is_refused(tmp_path: Path) -> None:
    path = tiny.base(tmp_path, "bert") / "model.safetensors"
    state = load_file(str(path))
    save_file(
        {name: tensor for name, tensor in state.items() if "layer.1.output" not in name},
        str(path),
        metadata={"format": "pt"},
    )
    with pytest.raises(
        ArtifactError, match=r"missing or has another shape: bert\.encoder\.layer\.1\.output"
    ):
        build(sources.resolve(str(path.parent)), HEAD, ModelOptions(), LoraConfig())


@pytest.mark.parametrize(
    ("family", "per_layer"),
    [
        (
            "bert",
            {
                "attention.self.query",
                "attention.self.key",
                "attention.self.value",
                "attention.output.dense",
                "intermediate.dense",
                "output.dense",
            },
        ),
        (
            "roberta",
            {
                "attention.self.query",
                "attention.self.key",
                "attention.self.value",
                "attention.output.dense",
                "intermediate.dense",
                "output.dense",
            },
        ),
        (
            "distilbert",
            {
                "attention.q_lin",
                "attention.k_lin",
                "attention.v_lin",
                "attention.out_lin",
                "ffn.lin1",
                "ffn.lin2",
            },
        ),
        (
            "llama",
            {
                *(f"self_attn.{name}_proj" for name in "qkvo"),
                *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
            },
        ),
        (
            "mistral",
            {
                *(f"self_attn.{name}_proj" for name in "qkvo"),
                *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
            },
        ),
        (
            "phi",
            {
                *(f"self_attn.{name}_proj" for name in "qkv"),
                "self_attn.dense",
                "mlp.fc1",
                "mlp.fc2",
            },
        ),
        ("phi3", {"self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"}),
        ("opt", {*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "fc1", "fc2"}),
    ],
)
@pytest.mark.document(
    "002",
    "LoRA of r 16 and alpha 32 on the layers of attention and MLP",
    where="`lora`",
    how="OPT's own names of layers; the document lists Llama's",
)
def test_every_linear_layer_of_a_block_is_adapted_and_neither_pooler_nor_head(
    tmp_path: Path, family: str, per_layer: set[str]
) -> None:
    model = make(tmp_path, family)
    assert lora_layers(model) == {
        f"{model.family.layers_path}.{layer}.{name}" for layer in (0, 1) for name in per_layer
    }
    trainable_modules = {
        name.split(".")[2]
        for name, parameter in model.network.named_parameters()
        if parameter.requires_grad and "lora_" not in name
    }
    assert trainable_modules == set(model.family.head_modules)


def test_top_layers_adapts_only_the_upper_ones(tmp_path: Path) -> None:
    assert all(".layer.1." in name for name in lora_layers(make(tmp_path, "bert", top_layers=1)))
    assert all(".layers.1." in name for name in lora_layers(make(tmp_path, "llama", top_layers=1)))
    with pytest.raises(ConfigError, match=r"top_layers: 3 is more than the 2 layers of this bert"):
        make(tmp_path, "bert", top_layers=3)


def test_a_misspelt_target_among_good_ones_is_named_in_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model = make(tmp_path, "llama", targets=("q_proj", "v_porj"))
    assert {name.rsplit(".", 1)[1] for name in lora_layers(model)} == {"q_proj"}
    assert "v_porj" in caplog.text
    assert "did you mean" in caplog.text


def test_targets_that_all_match_nothing_are_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"none of q_proj, v_proj is a linear layer of bert; "
            r"allowed: .*attention\.self\.query"
        ),
    ):
        make(tmp_path, "bert", targets=("q_proj", "v_proj"))
    with pytest.raises(ConfigError, match="none of q_porj"):
        check_targets(tiny.base(tmp_path, "llama"), LoraConfig(targets=("q_porj",)))


def test_an_unknown_family_works_by_generic_rules_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model = disturb(make(tmp_path, "electra"))
    assert "'electra' is not in the table of families" in caplog.text
    (tmp_path / "saved").mkdir()
    save(model, tmp_path / "saved")
    again = build(
        model.base, HEAD, ModelOptions(), LoraConfig(), adapter_dir=tmp_path / "saved", seed=7
    )
    assert np.abs(logits(again) - logits(model)).max() < 1e-5


def test_dropout_inside_the_base_is_off_unless_asked_for(tmp_path: Path) -> None:
    source = sources.resolve(str(tiny.base(tmp_path, "bert")))

    def rates(dropout: float) -> set[float]:
        model = build(source, HEAD, ModelOptions(dropout=dropout), LoraConfig(dropout=0.0))
        return {
            module.p
            for name, module in model.network.named_modules()
            if isinstance(module, torch.nn.Dropout) and "lora" not in name
        }

    assert rates(0.0) == {0.0}
    assert rates(0.3) == {0.3}


@pytest.mark.document("002", "gradient checkpointing", where="`model.gradient_checkpointing`")
def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    source = sources.resolve(str(tiny.base(tmp_path, "llama")))
    gradients = []
    for checkpointing in (False, True):
        model = build(
            source,
            HEAD,
            ModelOptions(gradient_checkpointing=checkpointing),
            LoraConfig(dropout=0.0),
            seed=2,
        )
        model.network.train()
        model.network(input_ids=torch.tensor([[5, 6, 7, 8]])).logits.square().sum().backward()
        gradients.append(
            {
                name: parameter.grad
                for name, parameter in model.network.named_parameters()
                if parameter.grad is not None
            }
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_the_adapters_type_is_the_one_asked_for(tmp_path: Path) -> None:
    for dtype, lora_type in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = make(tmp_path, "bert", dtype=dtype)
        assert {
            parameter.dtype
            for name, parameter in model.network.named_parameters()
            if "lora_" in name
        } == {lora_type}


def test_a_base_without_its_tokenizer_is_refused_instead_of_reading_every_word_as_unknown(
    tmp_path: Path,
) -> None:
    folder = tiny.base(tmp_path, "roberta")
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(
        ArtifactError,
        match=(
            r"its tokenizer cannot be loaded; the folder has none "
            r"of merges\.txt, tokenizer\.json"
        ),
    ):
        load_tokenizer(folder)
