"""A base model in 4 bits: evaluations do not change its training, it computes in the precision
around it, and merging gives a plain model."""

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import prepare_model_for_kbit_training
from safetensors.torch import load_file
from support import tiny
from torch.nn.functional import cross_entropy
from transformers import pipeline

from medray.config.trial import LoraConfig, ModelOptions, Precision
from medray.engines.transformers import TransformersEngine
from medray.errors import ConfigError
from medray.models import quantization, sources
from medray.models.batch import collate
from medray.models.build import BuiltModel, build, merge, merge_and_export
from medray.models.libraries import quiet
from medray.models.precision import arithmetic
from medray.study import preflight
from medray.types import Head

HEAD = Head(("negative", "positive", "unclear"))
IN_4_BITS = ["bert", "roberta", "distilbert", "modernbert", *tiny.DECODERS[:5]]
IN_4_BITS += ["qwen3_5_text", "gemma3_text"]
ROWS = [[5, 6, 7, 40], [8, 9], [10, 11, 12, 13, 14, 15], [20, 21, 22]]
LABELS = torch.tensor([0, 1, 2, 1])
TEXTS = [
    "tumour with metastasis in the nodes",
    "fever and infection",
    "glucose after therapy was no failure",
]


def make(path: Path, *, lora: LoraConfig | None = None, **model: Any) -> BuiltModel:
    return build(
        sources.resolve(str(path)),
        HEAD,
        ModelOptions(**{"quantization": "nf4", **model}),
        lora or LoraConfig(r=4),
        seed=1,
    )


def logits(model: BuiltModel, precision: Precision = "fp32") -> Any:
    return TransformersEngine(model, precision=precision, token_budget=1000).logits(ROWS)


def train(
    model: BuiltModel,
    num_steps: int,
    precision: Precision = "fp32",
    between: Callable[[], object] = lambda: None,
) -> list[float]:
    parameters = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
    optimizer, scaler = (
        torch.optim.AdamW(parameters, lr=1e-2),
        torch.amp.GradScaler("cpu", enabled=precision == "fp16"),
    )
    inputs, losses = collate(ROWS, model.tokenizer.pad_token_id), []
    for step in range(num_steps):
        torch.manual_seed(step)
        model.network.train()
        with arithmetic(precision, "cpu"):
            loss = cross_entropy(model.network(**inputs).logits.float(), LABELS)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        between()
    return losses


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_losses_are_the_same_with_and_without_an_evaluation_between_steps(
    tmp_path: Path, family: str
) -> None:
    path = tiny.base(
        tmp_path, family, hidden_size=64, intermediate_size=128
    )  # large enough for bitsandbytes to repack
    losses_alone = train(make(path), 6)
    model = make(path)
    assert train(model, 6, between=lambda: logits(model)) == losses_alone


@pytest.mark.parametrize("family", IN_4_BITS)
@pytest.mark.parametrize("head", [HEAD, None])
def test_a_base_is_quantized_once_and_later_loads_read_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, head: Head | None
) -> None:
    if head is None and family not in tiny.DECODERS:
        return
    monkeypatch.setenv("MEDRAY_CACHE", str(tmp_path / "cache"))
    base = sources.resolve(str(tiny.base(tmp_path, family)))
    packs = []
    pack = quantization.pack
    monkeypatch.setattr(
        quantization, "pack", lambda *arguments: packs.append(1) or pack(*arguments)
    )

    def load(double: bool) -> dict[str, torch.Tensor]:
        options = ModelOptions(quantization="nf4", double_quantization=double)
        model = build(base, head, options, LoraConfig(r=4), seed=1)
        weights = model.network.state_dict() | {
            f"buffer {name}": buffer for name, buffer in model.network.named_buffers()
        }
        return {name: tensor.clone() for name, tensor in weights.items()}

    for double in (True, False):
        packs.clear()
        first, second, third = load(double), load(double), load(double)
        assert len(packs) == 1
        for other in (second, third):
            assert first.keys() == other.keys()
            assert all(torch.equal(first[name], other[name]) for name in first)
            assert all(first[name].dtype == other[name].dtype for name in first)


def test_packed_weights_that_changed_on_disk_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MEDRAY_CACHE", str(tmp_path / "cache"))
    path = tiny.base(tmp_path)
    expectation = logits(make(path))
    (file,) = (tmp_path / "cache" / "bases").rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 255
    file.write_bytes(content)
    assert np.array_equal(logits(make(path)), expectation)
    assert "does not match its hash; the base model is quantized again" in caplog.text
    caplog.clear()
    assert np.array_equal(logits(make(path)), expectation)
    assert not caplog.text


def test_a_cache_that_cannot_be_written_costs_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.base(tmp_path)
    monkeypatch.setenv("MEDRAY_CACHE", str(tmp_path / "cache"))
    expectation = logits(make(path))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDRAY_CACHE", str(tmp_path / "file"))
    assert np.array_equal(logits(make(path)), expectation)


def test_packed_weights_keep_the_type_of_scales(tmp_path: Path) -> None:
    weights = {"scales": torch.tensor([0.5]), "embeddings": torch.full((2, 3), 0.5)}
    quantization.pack(weights, tmp_path, tmp_path / "packed")
    (path,) = (tmp_path / "packed").glob("*.safetensors")
    types = {name: tensor.dtype for name, tensor in load_file(path).items()}
    assert types == {"scales": torch.float32, "embeddings": torch.bfloat16}


def test_every_4_bit_layer_is_told_not_to_repack_on_a_cpu(tmp_path: Path) -> None:
    layers = quantization.layers_4bit(make(tiny.base(tmp_path)).network)
    assert len(layers) == 12
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_layer_computes_as_a_plain_one_with_the_same_weights(
    tmp_path: Path, precision: Precision
) -> None:
    model = make(tiny.base(tmp_path), lora=LoraConfig(r=4, targets=("query",)))
    name, layer = next(
        (name, layer)
        for name, layer in quantization.layers_4bit(model.network).items()
        if "intermediate" in name
    )
    plain = merge(model).network.get_submodule(name.removeprefix("base_model.model."))
    assert type(plain) is torch.nn.Linear
    torch.nn.init.normal_(plain.bias)  # shared with the 4-bit layer
    inputs = [
        torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        for _ in range(2)
    ]
    with arithmetic(precision, "cpu"):
        outputs = [layer(inputs[0]), plain(inputs[1])]
    for output in outputs:
        output.sum().backward()
    assert outputs[0].dtype == outputs[1].dtype
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    torch.testing.assert_close(outputs[0], outputs[1], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_training_in_16_bits_learns_and_rounds_nothing_of_the_base(
    tmp_path: Path, precision: Precision
) -> None:
    model = make(tiny.base(tmp_path))
    biases = {
        name: torch.randn_like(layer.bias)
        for name, layer in quantization.layers_4bit(model.network).items()
    }
    for name, bias in biases.items():
        model.network.get_submodule(name).bias.data = bias.clone()
    losses = train(model, 10, precision)
    assert losses[-1] < 0.7 * losses[0]
    assert 0 < np.abs(logits(model, precision) - logits(model)).max() < 0.1
    assert all(
        torch.equal(model.network.get_submodule(name).bias, bias) for name, bias in biases.items()
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_answers_as_the_cpu_that_quantized(tmp_path: Path, precision: Precision) -> None:
    model = make(tiny.base(tmp_path, hidden_size=64, intermediate_size=128))
    cpu_logits = logits(model)
    model.network.to("cuda")
    gpu_logits = TransformersEngine(
        model, precision=precision, token_budget=1000, device="cuda"
    ).logits(ROWS)
    assert np.abs(gpu_logits - cpu_logits).max() < (1e-2 if precision == "fp32" else 0.1)


@pytest.mark.document(
    "004",
    "weights in 4 bits take a quarter of the memory",
    where="`model.quantization: nf4`",
)
def test_a_weight_takes_half_a_byte_and_counts_as_one(tmp_path: Path) -> None:
    path = tiny.base(tmp_path, hidden_size=64, intermediate_size=128)
    model, whole = make(path), make(path, quantization="none")
    assert model.num_parameters == whole.num_parameters
    assert model.num_trainable == whole.num_trainable
    layer = next(iter(quantization.layers_4bit(model.network).values()))
    assert layer.weight.nbytes == 64 * 64 / 2
    assert layer.weight.quant_state.nested
    single = next(
        iter(quantization.layers_4bit(make(path, double_quantization=False).network).values())
    )
    assert not single.weight.quant_state.nested


@pytest.mark.parametrize("top_layers", [None, 1])
@pytest.mark.parametrize("double_quantization", [True, False])
def test_merged_is_a_plain_model_with_the_same_answers(
    tmp_path: Path, double_quantization: bool, top_layers: int | None
) -> None:
    model = make(
        tiny.base(tmp_path),
        lora=LoraConfig(r=4, top_layers=top_layers),
        double_quantization=double_quantization,
    )
    train(model, 8, "bf16")
    tokens = [model.tokenizer(text)["input_ids"] for text in TEXTS]
    before = TransformersEngine(model, precision="fp32", token_budget=1000).logits(tokens)
    merge_and_export(model, tmp_path / "merged")
    assert b"quantization_config" not in (tmp_path / "merged" / "config.json").read_bytes()
    plain = pipeline("text-classification", model=str(tmp_path / "merged"))
    assert [answer["label"] for answer in plain(TEXTS)] == [
        HEAD.labels[row.argmax()] for row in before
    ]
    with torch.inference_mode():
        after = np.concatenate([plain.model(torch.tensor([ids])).logits.numpy() for ids in tokens])
    assert np.abs(after - before).max() < 1e-4


def test_a_merge_in_bf16_rounds_each_sum_once_and_needs_no_second_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.base(tmp_path, "llama")
    dequantize, num_whole = quantization.dequantize, []

    def count(model: Any, name: str) -> None:
        dequantize(model, name)
        linear = [module for module in model.modules() if type(module) is torch.nn.Linear]
        inside = [module for module in linear if min(module.weight.shape) > 8]
        num_whole.append(sum(module.weight.dtype == torch.float32 for module in inside))

    exact = merge(make(path)).network
    monkeypatch.setattr(quantization, "dequantize", count)
    half = merge(make(path), "bf16").network
    assert len(set(num_whole)) == 1, "one layer at a time is in fp32"
    for name, weight in exact.named_parameters():
        other = half.get_parameter(name)
        if "proj" in name:
            assert torch.equal(other, weight.to(torch.bfloat16)), name
        else:
            assert torch.equal(other, weight), name


def test_pefts_preparation_for_4_bits_finds_nothing_left_to_do(tmp_path: Path) -> None:
    bare = build(
        sources.resolve(str(tiny.base(tmp_path))), HEAD, ModelOptions(quantization="nf4"), None
    ).network
    before = {
        name: (parameter.dtype, parameter.requires_grad)
        for name, parameter in bare.named_parameters()
    }
    assert set(before.values()) == {(torch.float32, False), (torch.uint8, False)}
    prepare_model_for_kbit_training(bare, use_gradient_checkpointing=False)
    assert {
        name: (parameter.dtype, parameter.requires_grad)
        for name, parameter in bare.named_parameters()
    } == before


def test_a_base_without_an_adapter_is_dequantized_too(tmp_path: Path) -> None:
    model = build(
        sources.resolve(str(tiny.base(tmp_path))),
        HEAD,
        ModelOptions(quantization="nf4"),
        None,
        seed=1,
    )
    before = logits(model)
    model = merge(model)
    assert not hasattr(model.network.config, "quantization_config")
    assert np.abs(logits(model) - before).max() < 1e-5


@pytest.mark.parametrize(
    "setting",
    ["model.quantization=nf4", "search.space={model.quantization: {choice: [none, nf4]}}"],
)
def test_a_machine_without_bitsandbytes_says_so_before_a_weight_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    study = tiny.study(tmp_path, setting, "lora.targets=[quary]")
    monkeypatch.setattr(
        quantization,
        "find_spec",
        lambda name: None if name == "bitsandbytes" else importlib.util.find_spec(name),
    )
    with pytest.raises(
        ConfigError,
        match=(
            r"2 mistakes(.|\n)*nf4 needs bitsandbytes, not "
            r"installed here; pip install(.|\n)*quary"
        ),
    ):
        preflight.check(study)
    with pytest.raises(ConfigError, match=r"^model\.quantization: nf4 needs bitsandbytes"):
        make(tmp_path / "tiny-bert")
    assert make(tmp_path / "tiny-bert", quantization="none").num_trainable


def test_only_the_advice_about_a_kernel_that_nobody_calls_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    caplog.set_level(logging.WARNING, logger=logger.name)
    with quiet():
        logger.warning(
            "Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please make sure ...",
            "no kernels",
        )
        logger.warning("another warning")
    logger.warning("gemm_4bit_forward failed")
    assert caplog.messages == ["another warning", "gemm_4bit_forward failed"]
