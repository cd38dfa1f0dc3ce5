"""The quick dropout has the right shares, mean, gradient and seed. The quick layer computes the
same as PEFT's."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear
from support import tiny
from torch import Tensor, nn

from medray.config.trial import LoraConfig, ModelOptions
from medray.models import sources
from medray.models.build import build, save
from medray.models.lora import QuickDropout, QuickLinear, dropout_mask, quicken
from medray.types import Head


@pytest.mark.parametrize("share", [0.05, 0.5, 0.999])
def test_as_many_are_left_out_as_asked_for_and_the_others_make_up_for_them(share: float) -> None:
    torch.manual_seed(0)
    inputs = torch.ones(401, 999)
    outputs = QuickDropout(share)(inputs)
    assert set(outputs.unique().tolist()) == {0.0, torch.tensor(1 / (1 - share)).item()}
    of_all = (share * (1 - share) / inputs.numel()) ** 0.5
    assert abs((outputs == 0).float().mean() - share) < 4 * of_all
    neighbours = ((outputs == 0)[:, 1:] & (outputs == 0)[:, :-1]).float().mean()
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
    outputs = QuickDropout(0.25)(inputs)
    outputs.sum().backward()
    assert outputs.dtype == dtype
    assert inputs.grad is not None
    assert torch.equal(inputs.grad, outputs)


def test_nothing_is_left_out_when_nothing_is_trained() -> None:
    inputs = torch.randn(40, 30)
    assert torch.equal(QuickDropout(0.5).eval()(inputs), inputs)
    assert torch.equal(QuickDropout(0.0)(inputs), inputs)


def test_every_adapter_has_it_fresh_and_read_back(tmp_path: Path) -> None:
    base, head = sources.resolve(str(tiny.base(tmp_path))), Head(("a", "b"))
    model = build(base, head, ModelOptions(), LoraConfig(dropout=0.1), seed=1)
    save(model, tmp_path / "saved")
    again = build(base, head, ModelOptions(), None, adapter_dir=tmp_path / "saved")
    for network in (model.network, again.network):
        dropouts = [
            layer.lora_dropout["default"]
            for layer in network.modules()
            if isinstance(layer, LoraLayer)
        ]
        assert dropouts
        assert all(isinstance(dropout, QuickDropout) and dropout.p == 0.1 for dropout in dropouts)
        layers = [layer for layer in network.modules() if isinstance(layer, Linear)]
        assert layers
        assert all(type(layer) is QuickLinear for layer in layers)


def layer_pair(dropout: float = 0.0, **settings: object) -> tuple[nn.Module, nn.Module]:
    """Return a layer of PEFT, and the same layer after `quicken`."""
    layers = []
    for is_quick in (False, True):
        torch.manual_seed(0)
        config = PeftLoraConfig(
            r=4,
            lora_alpha=6,
            lora_dropout=dropout,
            target_modules=["0"],
            init_lora_weights=False,
            **settings,
        )
        model = get_peft_model(nn.Sequential(nn.Linear(24, 40)), config)
        if is_quick:
            quicken(model)
        layers.append(model.base_model.model[0])
    assert [type(layer) for layer in layers] == [Linear, QuickLinear]
    return layers[0], layers[1]


def through(layer: nn.Module, inputs: Tensor, *, in_half: bool = False) -> list[Tensor]:
    """Return the outputs and every gradient."""
    inputs = inputs.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=in_half):
        outputs = layer(inputs)
    (outputs.float() * torch.linspace(-1, 1, outputs.numel()).view(outputs.shape)).sum().backward()
    assert inputs.grad is not None
    return [
        outputs,
        inputs.grad,
        layer.lora_A["default"].weight.grad,
        layer.lora_B["default"].weight.grad,
    ]  # type: ignore[union-attr, index, list-item]


@pytest.mark.parametrize(("in_half", "tolerance"), [(False, 1e-6), (True, 0.02)])
def test_a_layer_says_and_learns_what_pefts_does(in_half: bool, tolerance: float) -> None:
    theirs, ours = layer_pair()
    inputs = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(1))
    for their_values, our_values in zip(
        through(theirs, inputs, in_half=in_half),
        through(ours, inputs, in_half=in_half),
        strict=True,
    ):
        assert our_values.dtype == their_values.dtype
        assert our_values.shape == their_values.shape
        assert (our_values - their_values).abs().max() <= tolerance * their_values.abs().max()


def test_what_is_left_out_is_left_out_of_the_adapter_alone_and_of_its_gradients() -> None:
    theirs, ours = layer_pair(0.5)
    inputs = torch.randn(15, 24, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    mask = dropout_mask(inputs, 0.5) * 2
    theirs.lora_dropout["default"] = Times(mask)  # type: ignore[operator, union-attr]
    torch.manual_seed(2)
    for their_values, our_values in zip(
        through(theirs, inputs), through(ours, inputs), strict=True
    ):
        assert torch.allclose(our_values, their_values, atol=1e-5)
    assert torch.equal(ours.eval()(inputs), layer_pair()[1](inputs))


class Times(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.mask


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_adapters_that_are_not_plain_are_pefts(settings: dict[str, bool]) -> None:
    theirs, ours = layer_pair(**settings)
    inputs = torch.randn(15, 24)
    assert torch.equal(ours(inputs), theirs(inputs))


def test_a_dropout_that_is_none_of_pytorchs_is_asked() -> None:
    theirs, ours = layer_pair(0.5)
    inputs = torch.randn(15, 24)
    for layer in (theirs, ours):
        layer.lora_dropout["default"] = Times(torch.full((15, 24), 3.0))  # type: ignore[operator, union-attr]
    assert torch.equal(ours(inputs), theirs(inputs))


def test_switched_off_merged_and_doubled_it_is_pefts() -> None:
    theirs, ours = layer_pair()
    inputs = torch.randn(15, 24)
    for layer in (theirs, ours):
        layer.update_layer("other", 4, 6, config=PeftLoraConfig(r=4, init_lora_weights=True))  # type: ignore[operator]
    for change in (
        lambda layer: layer.set_adapter(["default", "other"]),
        lambda layer: layer.set_adapter(["other"]),
        lambda layer: layer.enable_adapters(False),
        lambda layer: (layer.enable_adapters(True), layer.set_adapter(["default"]), layer.merge()),
    ):
        change(theirs)
        change(ours)
        assert torch.allclose(ours(inputs), theirs(inputs), atol=1e-6)
