"""Releases in Google Cloud Storage and Azure. What they share with S3 is tested in
tests/storage/test_object_store.py."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from support import tiny

from medray.errors import ArtifactError, ConfigError
from medray.registry.registry import Registry
from medray.storage import files
from medray.storage.object_store import ObjectStore
from medray.storage.store import open_store


def test_a_release_is_published_resolved_verified_and_removed(cloud_uri: str) -> None:
    folder = tiny.checkpoint()
    registry = Registry(cloud_uri)
    assert registry.names() == []
    for version in (1, 2):
        assert registry.publish(folder, "cancer").record.version == version
        registry.point("cancer", "best", version)
    assert (registry.names(), registry.versions("cancer"), tiny.aliases(registry, "cancer")) == (
        ["cancer"],
        [1, 2],
        {"best": 2},
    )
    release = Registry(cloud_uri).resolve("cancer@best")
    release.verify()
    assert files.hash_folder(release.folder()) == files.hash_folder(folder)
    for _ in range(2):
        registry.store.remove("releases/cancer/2.json")
    assert registry.versions("cancer") == [1]
    with pytest.raises(ArtifactError, match=f"{cloud_uri}/1.json: there is no such object"):
        registry.store.read("1.json")


def test_of_many_writers_of_one_object_exactly_one_succeeds(cloud_uri: str) -> None:
    store = open_store(cloud_uri)
    store.check()
    with ThreadPoolExecutor(8) as pool:
        wins = list(
            pool.map(lambda number: store.create("1.json", str(number).encode()), range(32))
        )
    assert wins.count(True) == 1
    assert store.read("1.json") == str(wins.index(True)).encode()


def test_a_place_without_an_account_a_bucket_or_a_known_scheme_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(
        ConfigError, match=r"az://c/x: .*Account must be specified; set AZURE_STORAGE_ACCOUNT_NAME"
    ):
        ObjectStore("az://c/x")
    with pytest.raises(ConfigError, match="az://: names no container; write az://CONTAINER/PREFIX"):
        open_store("az://")
    with pytest.raises(
        ConfigError, match=r"ftp://x: .*gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
    ):
        open_store("ftp://x")
