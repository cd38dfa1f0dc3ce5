"""The quick dropout is a dropout: its shares, its mean, its gradient, its seed."""

from pathlib import Path

import pytest
import tiny
import torch
from peft.tuners.lora import LoraLayer

from medray.config import LoraConfig, ModelOptions
from medray.models import sources
from medray.models.build import build, save
from medray.models.dropout import QuickDropout
from medray.tasks.base import Head


@pytest.mark.parametrize("share", [0.05, 0.5, 0.999])
def test_as_many_are_left_out_as_asked_for_and_the_others_make_up_for_them(share: float) -> None:
    torch.manual_seed(0)
    inputs = torch.ones(401, 999)
    found = QuickDropout(share)(inputs)
    assert set(found.unique().tolist()) == {0.0, torch.tensor(1 / (1 - share)).item()}
    of_all = (share * (1 - share) / inputs.numel()) ** 0.5
    assert abs((found == 0).float().mean() - share) < 4 * of_all
    neighbours = ((found == 0)[:, 1:] & (found == 0)[:, :-1]).float().mean()
    assert abs(neighbours - share**2) < 8 * of_all


def test_the_seed_decides_which_and_each_call_draws_anew() -> None:
    dropout, inputs = QuickDropout(0.5), torch.ones(7, 3)
    torch.manual_seed(1)
    first, second = dropout(inputs), dropout(inputs)
    torch.manual_seed(1)
    assert torch.equal(dropout(inputs), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_goes_where_the_numbers_went(dtype: torch.dtype) -> None:
    inputs = torch.ones(40, 30, dtype=dtype, requires_grad=True)
    found = QuickDropout(0.25)(inputs)
    found.sum().backward()
    assert found.dtype == dtype
    assert inputs.grad is not None
    assert torch.equal(inputs.grad, found)


def test_nothing_is_left_out_when_nothing_is_trained() -> None:
    inputs = torch.randn(40, 30)
    assert torch.equal(QuickDropout(0.5).eval()(inputs), inputs)
    assert torch.equal(QuickDropout(0.0)(inputs), inputs)


def test_every_adapter_has_it_fresh_and_read_back(tmp_path: Path) -> None:
    base, head = sources.resolve(str(tiny.base(tmp_path))), Head(("a", "b"))
    built = build(base, head, ModelOptions(), LoraConfig(dropout=0.1), seed=1)
    save(built, tmp_path / "saved")
    again = build(base, head, ModelOptions(), None, adapter_dir=tmp_path / "saved")
    for model in (built.model, again.model):
        found = [layer.lora_dropout["default"] for layer in model.modules() if isinstance(layer, LoraLayer)]
        assert found
        assert all(isinstance(dropout, QuickDropout) and dropout.p == 0.1 for dropout in found)
