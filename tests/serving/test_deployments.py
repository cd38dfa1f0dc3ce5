"""The GPUs of replicas: one each where there are enough, else an equal part."""

from pathlib import Path
from typing import Any

import pytest
from ray.serve import Application
from support import tiny

from medray.registry.registry import Registry
from medray.serving.deployments import Deployments
from medray.serving.schemas import AppOptions

RELEASES = ("cancer", "findings")


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    for name in RELEASES:
        Registry(str(tmp_path / "runs")).publish(tiny.checkpoint(), name)
    return tmp_path / "runs"


def actors(storage: Path, num_gpus: float, **settings: Any) -> list[dict[str, Any]]:
    """Return the resources of a replica of each release."""
    options = AppOptions(releases=RELEASES, storage_path=str(storage), **settings)
    application = Deployments.of(options).application(num_gpus)
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
