"""The actors of a prediction on a cluster, and the part of a GPU that each has."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import tiny

from medray.batch import pool
from medray.batch.driver import BatchRequest, prepare
from medray.batch.pool import Pool, actors_per_gpu
from medray.batch.predictor import Predictor, Work
from medray.models import architecture
from medray.registry.registry import Registry
from medray.runtime.cluster import Cluster, Node


def cluster(cpus: float, gpus: float, nodes: int = 1) -> Cluster:
    return Cluster((Node(cpus, gpus),) * nodes, None, is_joined=False)


def test_actors_of_a_small_model_share_a_gpu_as_far_as_there_are_cpus() -> None:
    assert Pool.of(cluster(16, 1), None, None, per_gpu=4) == Pool(4, 1, 0.25)
    assert Pool.of(cluster(16, 2), None, None, per_gpu=4) == Pool(8, 1, 0.25)
    assert Pool.of(cluster(3, 1), None, None, per_gpu=4) == Pool(3, 1, 0.3333)
    assert Pool.of(cluster(3, 1), None, 3, per_gpu=4) == Pool(1, 3, 1.0)


def test_a_large_model_has_a_gpu_per_actor_unless_more_actors_are_set() -> None:
    assert Pool.of(cluster(16, 2), None, None) == Pool(2, 1, 1.0)
    assert Pool.of(cluster(16, 2), 1, None) == Pool(1, 1, 1.0)
    assert Pool.of(cluster(16, 2), 6, None) == Pool(6, 1, 0.3333)


def test_the_size_of_the_base_model_decides_how_many_actors_share_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Registry(str(tmp_path / "runs")).publish(tiny.checkpoint(), "cancer")
    rows = tmp_path / "rows.csv"
    rows.write_text("id,text\n1,fever\n")
    plan = prepare(BatchRequest("cancer", str(rows), str(tmp_path / "out"), str(tmp_path / "runs")))
    assert actors_per_gpu(plan) == 4
    outline = architecture.outline
    large = architecture.outline_of(
        architecture.find("meta-llama/Llama-3.2-1B", None)[0], "large", "head"
    )
    monkeypatch.setattr(architecture, "outline", lambda *arguments: (large, outline(*arguments)[1]))
    assert actors_per_gpu(plan) == 1


@pytest.mark.parametrize(
    ("gpus", "device", "limits"), [(0.25, "cuda", [0.25]), (1.0, "cuda", [1.0]), (0, "cpu", [])]
)
def test_an_actor_has_its_part_of_a_gpu_and_of_its_memory(
    monkeypatch: pytest.MonkeyPatch, gpus: float, device: str, limits: list[float]
) -> None:
    parts: list[float] = []
    devices: list[str] = []
    resources = {"CPU": 1.0} | ({"GPU": gpus} if gpus else {})
    context = SimpleNamespace(get_assigned_resources=lambda: resources)
    monkeypatch.setattr(pool.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", parts.append)
    monkeypatch.setattr(Predictor, "__init__", lambda self, work, device: devices.append(device))
    pool.Actor(Work(None, "runs", "out", 1))  # type: ignore[arg-type]
    assert (devices, parts) == ([device], limits)
