"""Layers in half precision answer as autocast has it, whatever the number of rows, and are put back as they were."""

import pytest
import torch
from torch.nn import Linear, Sequential

from medray.models import half


@pytest.mark.parametrize("shape", [(1, 1, 24), (3, 37, 24), (33, 24), (5, 60, 24), (700, 24), (0, 24)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_any_number_of_rows_is_answered_as_by_autocast(shape: tuple[int, ...], has_bias: bool) -> None:
    torch.manual_seed(0)
    model, inputs = Sequential(Linear(24, 40, bias=has_bias)), torch.randn(shape)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        wanted = model(inputs)
        with half.cast(model, "bf16"):
            found = model(inputs)
            alike = model(inputs.bfloat16())
    assert found.dtype == wanted.dtype == torch.bfloat16
    assert found.shape == wanted.shape
    assert torch.allclose(found.float(), wanted.float(), rtol=0.01, atol=0.01)
    assert torch.equal(found, alike)


def test_numbers_of_rows_are_few_and_hardly_more_than_asked() -> None:
    asked = range(1, 8193)
    found = [half.rounded(number) for number in asked]
    assert len(set(found)) < 200
    assert all(number <= more <= number * 1.5 for number, more in zip(asked, found, strict=True))
    assert found[:32] == list(range(1, 33))  # a step of a generation reads a few rows, and each more would cost


def test_layers_are_put_back_and_those_of_other_kinds_keep_theirs() -> None:
    class Other(Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) + 1

    model = Sequential(Linear(8, 8), Other(8, 8))
    before, inputs = [(type(layer), id(layer.weight), id(layer.bias)) for layer in model], torch.randn(40, 8)
    exact = model(inputs)
    with half.cast(model, "bf16"):
        assert [layer.weight.dtype for layer in model] == [torch.bfloat16] * 2
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            assert torch.allclose(model(inputs).float(), exact, atol=0.1)
        assert type(model[1]) is Other
    assert [(type(layer), id(layer.weight), id(layer.bias)) for layer in model] == before
    assert torch.equal(model(inputs), exact)
    with half.cast(model, "fp32"):
        assert torch.equal(model(inputs), exact)
