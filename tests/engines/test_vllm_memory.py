"""What vLLM's processes reserve of a GPU, with a vLLM that only notes its options."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from support import tiny

from medray.engines.vllm import engine as vllm
from medray.errors import ServingError
from medray.models.precision import fast_precision

CARD = 24_000_000_000


def settings(folder: Path) -> vllm.Settings:
    return vllm.Settings(
        tiny.base(folder, "llama"), "bf16", 128, cache_tokens=4096, num_rows=4, gpus=1
    )


@pytest.fixture
def build() -> dict[str, str]:
    """Return the device that vLLM is built for, which a test may change."""
    return {"device": "cuda"}


@pytest.fixture
def start_options(build: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return a list that receives the options of each start."""
    starts: list[dict[str, Any]] = []

    class Engine:
        output_handler = None

        @classmethod
        def from_engine_args(cls, options: dict[str, Any]) -> "Engine":
            starts.append(options)
            return cls()

        def shutdown(self, timeout: float) -> None: ...

    for name, members in {
        "vllm": {},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": lambda **options: options},
        "vllm.platforms": {
            "current_platform": SimpleNamespace(is_cpu=lambda: build["device"] == "cpu")
        },
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": type("AsyncLLM", (Engine,), {"errored": False})},
    }.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda place: SimpleNamespace(total_memory=CARD)
    )
    return starts


def test_an_engine_requires_its_weights_and_cache_of_a_gpu_and_leaves_the_rest_free(
    tmp_path: Path, start_options: list[dict[str, Any]]
) -> None:
    small = settings(tmp_path)
    vllm.Core(small)
    share = start_options[0]["gpu_memory_utilization"]
    assert share * CARD == pytest.approx(2e9 + small.cache_bytes, rel=0.01)
    assert 2 * share < 1, "the engine of a promotion starts beside the one that answers"


def test_more_cache_requires_more_of_the_gpu_and_never_more_than_all(tmp_path: Path) -> None:
    small = settings(tmp_path)
    large = replace(small, cache_tokens=1 << 20)
    difference = large.memory_share(CARD) - small.memory_share(CARD)
    assert difference * CARD == pytest.approx(large.cache_bytes - small.cache_bytes, rel=1e-6)
    assert large.memory_share(1000) == 1.0


def test_an_engine_on_a_cpu_says_nothing_of_a_gpu(
    tmp_path: Path,
    build: dict[str, str],
    start_options: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    build["device"] = "cpu"
    vllm.Core(replace(settings(tmp_path), gpus=0))
    assert "gpu_memory_utilization" not in start_options[0]


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [
        ("cuda", 0, "built for GPUs, and this deployment has none; change gpus, install the other"),
        ("cpu", 1, "built for CPUs, and this deployment has one; change gpus, install the other"),
    ],
)
def test_a_build_of_vllm_that_would_take_a_gpu_or_leave_one_idle_is_refused(
    tmp_path: Path,
    build: dict[str, str],
    start_options: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    gpus: int,
    message: str,
) -> None:
    for name in ("VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    build["device"] = device
    with pytest.raises(ServingError, match=f"llama: the installed vLLM is {message}"):
        vllm.Core(replace(settings(tmp_path), gpus=gpus))
    assert not start_options


@pytest.mark.parametrize(
    ("capability", "precision"), [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16")]
)
def test_a_gpu_without_bf16_computes_in_fp16(
    capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert fast_precision("cuda") == precision
