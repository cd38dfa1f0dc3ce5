"""The memory of a step by CUDA's operators, which the CUDA device in name has.

tests/test_cuda.py runs this file in a process of its own."""

from pathlib import Path

import pytest
from support import tiny

from medray.config.trial import LoraConfig, ModelOptions, Precision
from medray.models.architecture import load_config
from medray.models.footprint import Batch, Footprint, measure
from medray.models.frozen_weights import stored_type
from medray.types import Needs


@pytest.fixture(autouse=True)
def gpu() -> None:
    """Tensors without contents need the library alone, which the plugin has loaded."""


def footprint(
    folder: Path,
    family: str,
    device: str,
    *,
    precision: Precision = "bf16",
    dtype: str = "float32",
    quantization: str = "none",
) -> Footprint:
    path = folder / f"tiny-{family}"
    if not path.exists():
        tiny.base(folder, family, hidden_size=64, intermediate_size=128)
    config = load_config(path, family)
    config.dtype = dtype
    frozen_type = stored_type(config, precision) if device == "cuda" else None
    needs: Needs = "language model" if family == "llama" else "head"
    model = ModelOptions(quantization=quantization)  # type: ignore[arg-type]
    batch = Batch(8, 96, answer_tokens=2)
    return measure(
        config,
        model,
        LoraConfig(),
        batch,
        needs=needs,
        precision=precision,
        device=device,
        frozen_type=frozen_type,
    )


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_operators_of_cuda_need_about_the_memory_of_the_cpus(
    tmp_path: Path, family: str, precision: Precision, quantization: str
) -> None:
    on_cpu, on_device = (
        footprint(tmp_path, family, device, precision=precision, quantization=quantization)
        for device in ("cpu", "cuda")
    )
    assert on_device.weights == on_cpu.weights
    assert on_device.peak == pytest.approx(on_cpu.peak, rel=0.35)


def test_a_base_that_is_stored_in_16_bits_stays_in_them(tmp_path: Path) -> None:
    whole, narrow = (
        footprint(tmp_path, "llama", "cuda", dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    inside = whole.num_linear * 2
    assert whole.weights - narrow.weights >= inside
    assert whole.peak - narrow.peak > 1.5 * inside, "autocast keeps no copies of them"
