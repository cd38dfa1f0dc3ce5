"""The deployments of an application, and the GPUs of their replicas: one each where there are
enough, else an equal part."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.serve import Application
from support import tiny

from medray.registry.registry import Registry
from medray.serving import replica
from medray.serving.deployments import Deployments, is_one_deployment
from medray.serving.schemas import AppOptions
from medray.serving.vllm import ReleaseGroup

RELEASES = ("cancer", "findings")


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    for name in RELEASES:
        Registry(str(tmp_path / "runs")).publish(tiny.checkpoint(), name)
    return tmp_path / "runs"


def actors(storage: Path, num_gpus: float, **settings: Any) -> list[dict[str, Any]]:
    """Return the resources of a replica of each release."""
    options = AppOptions(releases=RELEASES, storage_path=str(storage), **settings)
    application = Deployments.of(options).application(
        num_gpus, has_haproxy=False, num_replicas=options.replicas
    )
    _, releases, _ = application._bound_deployment.init_args
    assert all(isinstance(release, Application) for release in releases.values())
    return [releases[name]._bound_deployment.ray_actor_options or {} for name in RELEASES]


@pytest.mark.parametrize(
    ("num_gpus", "settings", "share"),
    [
        (0, {}, None),
        (2, {}, 1.0),
        (8, {}, 1.0),
        (1, {}, 0.5),
        (2, {"replicas": 3}, 0.3333),
        (0, {"gpus": 1}, 1.0),
        (2, {"gpus": 0}, None),
        (2, {"gpus": 0.25}, 0.25),
    ],
)
def test_replicas_get_a_gpu_each_or_an_equal_part_and_what_is_set_holds(
    storage: Path, num_gpus: float, settings: dict[str, Any], share: float | None
) -> None:
    for actor in actors(storage, num_gpus, **settings):
        assert actor.get("num_gpus") == share
        assert actor["num_cpus"] == 1
    assert (share or 0) * 2 * settings.get("replicas", 1) <= num_gpus or "gpus" in settings


@pytest.mark.parametrize(
    ("gpus", "device", "limits"), [(0.5, "cuda", [0.5]), (2.0, "cuda", [1.0]), (0, "cpu", [])]
)
def test_a_replica_has_its_part_of_a_gpu_and_of_its_memory(
    monkeypatch: pytest.MonkeyPatch, gpus: float, device: str, limits: list[float]
) -> None:
    class EndOfStart(Exception):
        """Ends the start of a replica when it has chosen its device."""

    def end() -> None:
        raise EndOfStart

    parts: list[float] = []
    resources = {"CPU": 1.0} | ({"GPU": gpus} if gpus else {})
    context = SimpleNamespace(get_assigned_resources=lambda: resources)
    monkeypatch.setattr(replica, "prepare", lambda: None)
    monkeypatch.setattr(replica.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(replica.serve, "get_replica_context", end)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", parts.append)
    one = object.__new__(replica.ReleaseReplica)
    with pytest.raises(EndOfStart):
        replica.ReleaseReplica.__init__(one, ONE, AppOptions(releases=("cancer",)))
    assert (one.device, parts) == (device, limits)


ONE = ReleaseGroup("transformers", ("cancer",))
TWO = ReleaseGroup("transformers", ("findings",))


@pytest.mark.parametrize(
    ("groups", "has_haproxy", "num_replicas", "is_one"),
    [
        ([ONE], True, None, True),
        ([ONE], True, 4, True),
        ([ONE], False, 1, True),
        ([ONE], False, 2, False),  # nothing would repeat the requests of a replica that dies
        ([ONE], False, None, False),  # Serve's YAML may set several
        ([ONE, TWO], True, 1, False),
        ([ReleaseGroup("vllm", ("adviser",))], True, 1, False),
        ([ReleaseGroup("vllm", ("adviser", "doctor"))], True, 1, False),
        ([ReleaseGroup("transformers", ("later",), is_missing=True)], True, 1, False),
    ],
)
def test_one_release_is_one_deployment_where_a_dead_replica_costs_no_request(
    groups: list[ReleaseGroup], has_haproxy: bool, num_replicas: int | None, is_one: bool
) -> None:
    assert is_one_deployment(groups, has_haproxy=has_haproxy, num_replicas=num_replicas) == is_one


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_one_deployment_has_the_name_and_resources_of_the_release_and_queues_of_its_own(
    storage: Path, num_replicas: int
) -> None:
    options = AppOptions(
        releases=("cancer",), storage_path=str(storage), replicas=num_replicas, cpus=2
    )
    application = Deployments.of(options).application(
        1, has_haproxy=False, num_replicas=num_replicas
    )
    top = application._bound_deployment
    release = top if num_replicas == 1 else top.init_args[1]["cancer"]._bound_deployment
    assert (release.name, release.num_replicas) == ("cancer", num_replicas)
    assert release.ray_actor_options == {"num_cpus": 2, "num_gpus": 1 / num_replicas}
    assert (top.name == "Ingress") == (num_replicas == 2)
    assert (
        top.max_ongoing_requests > options.limits.ongoing_requests + options.limits.queued_requests
    )
    assert top.max_queued_requests == -1


def test_an_ingress_has_a_replica_per_engine_on_vllm(storage: Path) -> None:
    options = AppOptions(releases=RELEASES, storage_path=str(storage))
    for num_engines in range(3):
        groups = tuple(
            ReleaseGroup("vllm" if number < num_engines else "transformers", (name,))
            for number, name in enumerate(RELEASES)
        )
        application = Deployments(options, groups, {}).application(
            0, has_haproxy=True, num_replicas=1
        )
        assert application._bound_deployment.num_replicas == max(1, num_engines)
