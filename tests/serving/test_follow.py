from pathlib import Path

import pytest

from medray.errors import ArtifactError
from medray.records import Move
from medray.registry.registry import Registry
from medray.registry.release import Release
from medray.serving.follow import Follower, standing


def moves(*versions: int) -> list[Move]:
    return [Move(version=version, time="", by="") for version in versions]


@pytest.mark.parametrize(
    ("history", "stands_on"),
    [
        ([1], [1]),
        ([1, 2, 3], [1, 2, 3]),
        ([1, 2, 1], [1]),
        ([1, 2, 3, 2], [1, 2]),
        ([1, 2, 1, 2], [1, 2]),
        ([2, 2], [2]),
        ([], []),
    ],
)
def test_going_back_withdraws_what_came_after(history: list[int], stands_on: list[int]) -> None:
    assert standing(moves(*history)) == stands_on


class Loader:
    """Opens releases by their reference, except those named broken."""

    def __init__(self) -> None:
        self.broken_versions: set[int] = set()
        self.opened_versions: list[int] = []

    def __call__(self, release: Release) -> str:
        self.opened_versions.append(release.record.version)
        if release.record.version in self.broken_versions:
            raise ArtifactError(f"{release.reference}: adapter_model.safetensors was changed")
        return f"model {release.record.version}"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Five versions as the registry keeps them, without the checkpoints that a loader would
    read."""
    registry = Registry(str(tmp_path))
    for version in range(1, 6):
        record = (
            f'{{"name": "cancer", "version": {version}, "content_id": "{version:064x}", "created": '
            '""}'
        )
        registry.store.create(f"releases/cancer/{version}.json", record.encode())
    registry.point("cancer", "best", 1)
    return registry


def follow(
    registry: Registry,
    loader: Loader,
    reference: str = "cancer@best",
    retry_s: float = 1000,
    may_wait: bool = False,
) -> Follower[str]:
    return Follower(registry, reference, loader, every_s=1, retry_s=retry_s, may_wait=may_wait)


def test_a_moved_alias_is_followed_and_one_that_stays_costs_no_load(registry: Registry) -> None:
    loader = Loader()
    following = follow(registry, loader)
    following.step()
    registry.point("cancer", "best", 3)
    following.step()
    following.step()
    assert (following.model, following.error, loader.opened_versions) == ("model 3", None, [1, 3])


def test_a_release_that_cannot_be_loaded_never_takes_over_and_is_left_alone_for_a_while(
    registry: Registry,
) -> None:
    loader = Loader()
    loader.broken_versions = {2}
    following = follow(registry, loader)
    registry.point("cancer", "best", 2)
    for _ in range(3):
        following.step()
    assert following.model == "model 1"
    assert following.error_version == 2
    assert "adapter_model.safetensors was changed" in str(following.error)
    assert loader.opened_versions == [1, 2]
    registry.point("cancer", "best", 3)
    following.step()
    assert (following.model, following.error, following.error_version) == ("model 3", None, None)


def test_a_failed_release_is_tried_again_when_its_time_is_over(registry: Registry) -> None:
    loader = Loader()
    loader.broken_versions = {2}
    following = follow(registry, loader, retry_s=0)
    registry.point("cancer", "best", 2)
    following.step()
    loader.broken_versions = set()
    following.step()
    assert (following.model, following.error) == ("model 2", None)


def test_back_at_the_version_that_answers_the_error_is_over(registry: Registry) -> None:
    loader = Loader()
    loader.broken_versions = {2}
    following = follow(registry, loader)
    registry.point("cancer", "best", 2)
    following.step()
    registry.point("cancer", "best", 1)
    following.step()
    assert (following.model, following.error, loader.opened_versions) == ("model 1", None, [1, 2])


def test_a_registry_that_cannot_be_read_leaves_the_model_in_place(
    registry: Registry, tmp_path: Path
) -> None:
    following = follow(registry, Loader())
    (tmp_path / "releases").rename(tmp_path / "away")
    following.step()
    assert following.model == "model 1"
    assert "has no release 'cancer'" in str(following.error)
    (tmp_path / "away").rename(tmp_path / "releases")
    following.step()
    assert following.error is None


def test_a_half_written_move_is_an_error_that_passes_and_not_the_end_of_looking(
    registry: Registry, tmp_path: Path
) -> None:
    following = follow(registry, Loader())
    move = tmp_path / "releases" / "cancer" / "aliases" / "best" / "2.json"
    move.write_text('{"version": 2,')
    following.step()
    assert following.model == "model 1"
    assert "JSON" in str(following.error)
    move.unlink()
    registry.point("cancer", "best", 2)
    following.step()
    assert (following.model, following.error) == ("model 2", None)


def test_a_new_replica_beside_a_broken_release_takes_the_one_before_and_never_a_withdrawn_one(
    registry: Registry,
) -> None:
    loader = Loader()
    for version in (2, 3, 2, 4):
        registry.point("cancer", "best", version)
    loader.broken_versions = {4}
    following = follow(registry, loader)
    assert (following.model, following.error_version) == ("model 2", 4)
    loader.broken_versions = {1, 2, 4}
    with pytest.raises(ArtifactError, match="cancer@4 cannot be loaded"):
        follow(registry, loader)
    assert 3 not in loader.opened_versions


def test_a_pinned_version_has_no_other_to_fall_back_to_and_a_bare_name_follows_the_latest(
    registry: Registry,
) -> None:
    loader = Loader()
    loader.broken_versions = {4}
    with pytest.raises(ArtifactError, match="cancer@4 cannot be loaded"):
        follow(registry, loader, "cancer@4")
    following = follow(registry, loader, "cancer")
    assert following.model == "model 5"
    registry.store.create(
        "releases/cancer/6.json",
        f'{{"name": "cancer", "version": 6, "content_id": "{6:064x}", "created": ""}}'.encode(),
    )
    following.step()
    assert following.model == "model 6"


def test_a_release_that_may_be_missing_is_waited_for_and_taken_once_it_is_there(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ArtifactError, match="has no alias 'next'"):
        follow(registry, Loader(), "cancer@next")
    loader = Loader()
    loader.broken_versions = {2}
    following = follow(registry, loader, "cancer@next", may_wait=True)
    for _ in range(3):
        following.step()
    assert (following.model, following.release) == (None, None)
    assert "has no alias 'next'" in str(following.error)
    assert [record.message for record in caplog.records if "does not switch" in record.message] == [
        f"cancer@next: does not switch: {following.error}"  # once, not at every look
    ]
    registry.point("cancer", "next", 2)
    following.step()
    assert (following.model, following.error_version) == (None, 2)
    registry.point("cancer", "next", 3)
    following.step()
    assert (following.model, following.error) == ("model 3", None)
