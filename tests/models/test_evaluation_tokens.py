"""The tokens of an evaluation's batch on a GPU, with a memory that only says its size."""

import pytest
import torch

from medray.models import architecture
from medray.models.batch import evaluation_tokens

GB = 10**9


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    figures = {"free": 20 * GB, "total": 24 * GB, "allocated": 2 * GB, "reserved": 3 * GB}
    share = figures | {"share": 1.0}
    for name, value in {
        "mem_get_info": lambda: (share["free"], share["total"]),
        "memory_allocated": lambda: share["allocated"],
        "memory_reserved": lambda: share["reserved"],
        "get_per_process_memory_fraction": lambda: share["share"],
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return share


def network(source: str):  # type: ignore[no-untyped-def]
    config, _ = architecture.find(source, None)
    return architecture.outline_of(config, source, "head")


def test_a_cpu_evaluates_with_the_budget_that_is_set(memory: dict[str, float]) -> None:
    assert evaluation_tokens(network("meta-llama/Llama-3.2-1B"), 4096, "cpu") == 4096


def test_a_gpu_evaluates_as_many_tokens_as_half_of_its_free_memory_holds(
    memory: dict[str, float],
) -> None:
    model = network("meta-llama/Llama-3.2-1B")
    tokens = evaluation_tokens(model, 1024, "cuda")
    # keys and values alone take 64 kB per token in fp32, and logits 513 kB
    assert 4096 < tokens < 10.5 * GB / 577_000
    memory["free"] /= 4
    assert evaluation_tokens(model, 1024, "cuda") < tokens / 3
    memory["free"] = 0.1 * GB
    assert evaluation_tokens(model, 1024, "cuda") >= 1024


def test_a_part_of_a_gpu_bounds_its_tokens(memory: dict[str, float]) -> None:
    model = network("meta-llama/Llama-3.2-1B")
    whole = evaluation_tokens(model, 1, "cuda")
    memory["share"] = 0.25
    assert evaluation_tokens(model, 1, "cuda") < whole / 4


def test_a_small_model_has_a_limit_all_the_same(memory: dict[str, float]) -> None:
    assert evaluation_tokens(network("distilbert/distilbert-base-uncased"), 1, "cuda") <= 1 << 17
