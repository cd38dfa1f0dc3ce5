"""Weights in half precision give autocast's answers for every family and length, and are restored
afterwards."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny
from torch import Tensor
from torch.nn import Linear
from transformers.activations import GELUActivation

from medray.engines.transformers import TransformersEngine
from medray.models.batch import bf16_width
from medray.models.build import BuiltModel
from medray.models.families import ENCODERS
from medray.models.precision import (
    PackedLinear,
    cast,
    cast_within,
    choose,
    multiplies_bf16,
)
from medray.types import Head

needs_bf16 = pytest.mark.skipif(not multiplies_bf16(), reason="no AVX512_BF16")
ROWS = [[5, 9, 11, 7, *range(4, 4 + length)] for length in (1, 40, 3, 17, 28, 6)]


def outputs(model: BuiltModel, precision: str) -> np.ndarray:
    engine = TransformersEngine(model, precision=precision, token_budget=256)  # type: ignore[arg-type]
    assert model.head
    return (
        np.concatenate(engine.token_logits(ROWS)) if model.head.per_token else engine.logits(ROWS)
    )


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("family", sorted({*ENCODERS, *tiny.WITH_HEADS}))
@pytest.mark.document(
    "000",
    "weights in fp16 while serving",
    where="`precision` of a deployment",
    how="in bf16, as the test has it; `precision: fp16` of a deployment takes fp16",
)
def test_every_family_answers_near_to_fp32_and_is_put_back(
    tmp_path: Path, family: str, per_token: bool
) -> None:
    if per_token and family not in ENCODERS:
        pytest.skip("heads that read tokens are for encoders")
    model = tiny.merged_model(tmp_path, family, Head(("a", "b", "c"), per_token))
    exact, before = (
        outputs(model, "fp32"),
        {name: id(weight) for name, weight in model.network.named_parameters()},
    )
    parts = dict(model.network.named_modules())
    with cast_within(model.network, model.family, "bf16"):
        bf16_outputs = outputs(model, "bf16")
    assert dict(model.network.named_modules()) == parts
    assert np.abs(bf16_outputs - exact).max() > 0
    assert np.sqrt(np.mean((bf16_outputs - exact) ** 2)) < 0.05 * exact.std()
    assert {name: id(weight) for name, weight in model.network.named_parameters()} == before
    assert np.array_equal(outputs(model, "fp32"), exact)


@needs_bf16
@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_holds_nothing_in_fp32(tmp_path: Path, family: str) -> None:
    model = tiny.merged_model(tmp_path, family, Head(("a", "b")))
    cast(model.network, model.family, "bf16")
    layers = model.network.get_submodule(model.family.layers_path)
    assert not any(isinstance(module, Linear) for module in layers.modules())
    assert {weight.dtype for weight in model.network.parameters()} == {torch.bfloat16}
    if family != "modernbert":  # which multiplies by a gate after it
        assert not any(isinstance(module, GELUActivation) for module in layers.modules())


def test_what_flows_between_the_layers_of_a_language_model_is_fp32(tmp_path: Path) -> None:
    model = tiny.merged_model(tmp_path, "llama", None)
    cast(model.network, model.family, "bf16")
    assert {
        weight.dtype for name, weight in model.network.named_parameters() if "norm" in name
    } == {torch.float32}
    assert model.network.get_input_embeddings().weight.dtype == torch.float32
    assert model.network.get_output_embeddings().weight.dtype == torch.bfloat16


@needs_bf16
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_packed_layer_multiplies_as_one_in_bf16(has_bias: bool) -> None:
    torch.manual_seed(0)
    linear = Linear(48, 40, bias=has_bias).bfloat16()
    with torch.inference_mode():
        for rows in (1, 7, 300):
            inputs = torch.randn(2, rows, 48)
            bf16_outputs = PackedLinear(linear)(inputs)
            assert bf16_outputs.dtype == torch.bfloat16
            assert (bf16_outputs - linear(inputs.bfloat16())).abs().max() <= 0.02


@pytest.mark.parametrize(("precision", "widths"), [("bf16", [48, 32, 16]), ("fp32", [44, 32, 5])])
def test_rows_of_an_encoder_in_bf16_are_as_wide_as_attention_is_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, widths: list[int]
) -> None:
    model, row_widths = tiny.merged_model(tmp_path, "bert", Head(("a", "b"))), list[int]()
    forward = model.network.forward

    def record(input_ids: Tensor, attention_mask: Tensor) -> object:
        row_widths.append(input_ids.shape[1])
        return forward(input_ids=input_ids, attention_mask=attention_mask)

    monkeypatch.setattr(model.network, "forward", record)
    engine = TransformersEngine(model, precision=precision, token_budget=1)  # type: ignore[arg-type]
    engine.logits([ROWS[1], ROWS[4], ROWS[0]])
    assert row_widths == widths


def test_no_row_becomes_wider_than_there_are_positions(tmp_path: Path) -> None:
    config = tiny.merged_model(tmp_path, "bert", Head(("a", "b"))).network.config
    config.max_position_embeddings = 70
    assert [bf16_width(config, longest) for longest in (1, 16, 17, 64, 65, 70)] == [
        16,
        16,
        32,
        64,
        65,
        70,
    ]
    assert (
        bf16_width(tiny.merged_model(tmp_path, "llama", Head(("a", "b"))).network.config, 17) == 17
    )


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")],
)
def test_on_a_gpu_auto_follows_its_capability_and_takes_no_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    precision: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)

    def forward() -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    record = choose(
        "auto",
        forward,
        shape=(8, 64),
        device="cuda",
        key=("model",),
        folder=tmp_path,
        study=(tmp_path, ("study",)),
    )
    assert (record.actual, record.setting, record.seconds) == (precision, "auto", {})
    assert list(tmp_path.iterdir()) == []
