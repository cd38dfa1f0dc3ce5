"""Batches of rows. Answers and gradients equal those of PyTorch's attention, which does not run
where it is slow."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from torch import Tensor

from medray.config.trial import LoraConfig, ModelOptions
from medray.errors import DataError
from medray.models import batch, sources
from medray.models.batch import check_rows, collate
from medray.models.build import BuiltModel, build, merge_and_export
from medray.types import Head

ROWS = [[10, 11, 12], [20] * 30, [15], [16, 17, 18, 19, 21, 22]]
ENCODERS = ["bert", "roberta", "distilbert", "electra"]
LABELS = torch.tensor([0, 1, 1, 0])


def make(folder: Path, family: str) -> BuiltModel:
    model = build(
        sources.resolve(str(tiny.base(folder, family))),
        Head(("a", "b")),
        ModelOptions(),
        LoraConfig(),
        seed=1,
    )
    model.network.eval()
    return model


def use(model: BuiltModel, name: str) -> None:
    model.network.get_base_model().set_attn_implementation(name)


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the widths of rows that are attended one by one."""
    widths = list[int]()
    attend = batch.scaled_dot_product_attention

    def record(query: Tensor, *others: Any, **options: Any) -> Tensor:
        widths.append(query.shape[2])
        return attend(query, *others, **options)

    monkeypatch.setattr(batch, "scaled_dot_product_attention", record)
    return widths


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padded_rows_of_an_encoder_are_attended_one_by_one(
    tmp_path: Path, lengths: list[int], family: str, dtype: torch.dtype
) -> None:
    model = make(tmp_path, family)
    inputs = collate(ROWS, model.tokenizer.pad_token_id)
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        ours = model.network(**inputs).logits
        assert (
            lengths == ([3, 30, 1, 6] if dtype == torch.float32 else [16, 30, 16, 16]) * 2
        )  # of two layers
        use(model, "sdpa")
        assert (ours - model.network(**inputs).logits).abs().max() < (
            1e-5 if dtype == torch.float32 else 0.05
        )
    assert len(lengths) == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modernbert_keeps_its_windows(
    tmp_path: Path, lengths: list[int], dtype: torch.dtype
) -> None:
    model = make(tmp_path, "modernbert")
    inputs = collate(ROWS, model.tokenizer.pad_token_id)
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        ours = model.network(**inputs).logits
        assert len(lengths) == 4  # rows of the layer that has no window
        use(model, "sdpa")
        limit = 1e-5 if dtype == torch.float32 else 0.05
        assert (ours - model.network(**inputs).logits).abs().max() < limit
        for row, each in zip(ROWS, ours, strict=True):
            assert (model.network(torch.tensor([row])).logits[0] - each).abs().max() < limit


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_what_is_not_padded_or_in_front_or_causal_is_attended_together(
    tmp_path: Path, lengths: list[int], family: str
) -> None:
    model = make(tmp_path, family)
    pad = model.tokenizer.pad_token_id
    both = [collate([[5, 6, 7], [8, 9, 10]], pad), collate(ROWS, pad, side="left")]
    with torch.inference_mode():
        for inputs in [*both, collate(ROWS, pad)] if family == "llama" else both:
            use(model, batch.ATTENTION)
            ours = model.network(**inputs).logits
            use(model, "sdpa")
            assert torch.equal(ours, model.network(**inputs).logits)
    assert not lengths


@pytest.mark.parametrize("family", [*ENCODERS, "modernbert", *tiny.WITH_HEADS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_in_bf16_attends_in_fp32_and_learns_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, dtype: torch.dtype
) -> None:
    model, types = make(tmp_path, family), set[torch.dtype]()
    forward = batch.sdpa_attention_forward

    def record(
        module: Any, query: Tensor, key: Tensor, value: Tensor, *others: Any, **options: Any
    ) -> tuple[Tensor, None]:
        types.update((query.dtype, key.dtype, value.dtype))
        assert not torch.is_autocast_enabled("cpu")
        ours: tuple[Tensor, None] = forward(module, query, key, value, *others, **options)
        return ours

    def gradients() -> Tensor:
        model.network.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            logits = model.network(**collate(ROWS, model.tokenizer.pad_token_id)).logits
        torch.nn.functional.cross_entropy(logits.float(), LABELS).backward()
        return torch.cat(
            [
                weight.grad.flatten()
                for weight in model.network.parameters()
                if weight.grad is not None
            ]
        )

    monkeypatch.setattr(batch, "sdpa_attention_forward", record)
    ours = gradients()
    assert types == {torch.float32}
    use(model, "sdpa")
    theirs = gradients()
    assert (ours - theirs).norm() <= (0 if dtype == torch.float32 else 0.05) * theirs.norm()
    assert theirs.norm() > 0


def test_no_export_names_our_attention(tmp_path: Path) -> None:
    model = make(tmp_path, "bert")
    assert model.network.config._attn_implementation == batch.ATTENTION
    merge_and_export(model, tmp_path / "merged")
    assert batch.ATTENTION not in (tmp_path / "merged" / "config.json").read_text(encoding="utf-8")


def test_rows_without_a_token_are_counted() -> None:
    with pytest.raises(DataError, match="1 of 2 inputs have no tokens"):
        check_rows([[5], []])
    check_rows([[5]])
