"""Linear layers in 8 bits: near to fp32 for every family, at any length, and put back as they were."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny
from torch.nn import Linear

from medray.engines.transformers import TransformersEngine
from medray.errors import ConfigError
from medray.models import int8
from medray.models.build import Built
from medray.models.families import FAMILIES
from medray.models.int8 import Linear8
from medray.types import Head

needs_dot_products = pytest.mark.skipif(not int8.is_supported(), reason="this processor has no AVX512_VNNI")
ROWS = [[5, 9, 11, 7, *range(4, 4 + length)] for length in (1, 40, 3, 17, 28, 6)]


def outputs(built: Built, precision: str, budget: int = 256) -> list[np.ndarray]:
    engine = TransformersEngine(built, precision=precision, token_budget=budget)  # type: ignore[arg-type]
    return engine.token_logits(ROWS) if built.head and built.head.per_token else list(engine.logits(ROWS))


@needs_dot_products
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_near_to_fp32_and_is_put_back(tmp_path: Path, family: str) -> None:
    built = tiny.merged(tmp_path, family, Head(("a", "b", "c")))
    exact = np.concatenate(outputs(built, "fp32"))
    with int8.quantised(built):
        layers = built.model.get_submodule(built.family.layers_path)
        assert not any(isinstance(module, Linear) for module in layers.modules())
        heads = [module for name in FAMILIES[family].head_modules for module in built.model.get_submodule(name).modules()]
        assert heads
        assert not any(isinstance(module, Linear8) for module in heads)
        found = np.concatenate(outputs(built, "int8"))
    assert np.abs(found - exact).max() > 0
    assert np.sqrt(np.mean((found - exact) ** 2)) < 0.2 * exact.std()
    assert np.array_equal(np.concatenate(outputs(built, "fp32")), exact)


@needs_dot_products
def test_a_head_that_reads_tokens_answers_each_of_them(tmp_path: Path) -> None:
    built = tiny.merged(tmp_path, "bert", Head(("O", "B", "I"), per_token=True))
    exact = outputs(built, "fp32")
    int8.quantise(built)
    for row, wanted, tokens in zip(outputs(built, "int8"), exact, ROWS, strict=True):
        assert row.shape == wanted.shape == (len(tokens), 3)
        assert np.sqrt(np.mean((row - wanted) ** 2)) < 0.3 * wanted.std()


@needs_dot_products
def test_a_layer_is_as_near_as_rounding_lets_it_be() -> None:
    torch.manual_seed(0)
    linear, inputs = Linear(64, 32), torch.randn(3, 7, 64)
    inputs[0, 0] = 0
    with torch.inference_mode():
        exact, found = linear(inputs), Linear8(linear)(inputs)
    # Half a step of the inputs, whose range has 255, and half of one of the weights, each against all of the others.
    steps = (inputs.max() - inputs.min()) / 255 * linear.weight.abs().sum(1), linear.weight.abs().amax(1) / 127 * inputs.abs().sum(-1).max()
    assert ((found - exact).abs() <= (steps[0] + steps[1]) / 2 + 1e-4).all()
    assert torch.allclose(found[0, 0], linear.bias, atol=(inputs.max() - inputs.min()).item() / 255)


def test_what_cannot_be_had_in_8_bits_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = tiny.merged(tmp_path, "llama", None)
    with pytest.raises(ConfigError, match="is a language model: 8 bits are for models with a head"):
        int8.check(speaker)
    other = tiny.merged(tmp_path, "electra", Head(("a", "b")))
    with pytest.raises(ConfigError, match="its type 'electra' has no row"):
        int8.check(other)
    known = tiny.merged(tmp_path, "bert", Head(("a", "b")))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    with pytest.raises(ConfigError, match="this processor has no AVX512_VNNI"):
        int8.check(known)
    known.model.to("meta")
    with pytest.raises(ConfigError, match="is on meta: 8 bits are for CPUs"):
        int8.check(known)
