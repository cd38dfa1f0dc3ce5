"""Releases in S3. The server is moto's, whose PUT checks and writes in two steps; a lock joins them
into one, as in S3."""

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import s3, tiny

import medray
from medray.errors import ArtifactError, ConfigError, UnreachableError
from medray.registry.registry import Registry
from medray.storage import checkpoint, files
from medray.storage.object_store import ObjectStore
from medray.storage.store import open_store


@pytest.fixture(scope="module")
def folder() -> Path:
    return tiny.checkpoint()


def test_a_release_is_published_resolved_verified_loaded_and_exported(
    folder: Path, uri: str, tmp_path: Path
) -> None:
    registry = Registry(uri)
    assert registry.names() == []
    assert [registry.publish(folder, "cancer").record.version for _ in range(2)] == [1, 2]
    for version in (2, 1):
        registry.point("cancer", "best", version)
    assert (registry.names(), registry.versions("cancer"), tiny.aliases(registry, "cancer")) == (
        ["cancer"],
        [1, 2],
        {"best": 1},
    )
    assert [move.version for move in registry.history("cancer", "best")] == [2, 1]
    release = registry.resolve("cancer@best")
    release.verify()
    assert release.folder().is_relative_to(tmp_path / "cache")
    assert files.hash_folder(release.folder()) == files.hash_folder(folder)
    assert len(registry.store.names("checkpoints")) == 1
    (answer,) = medray.load("cancer@best", storage_path=uri).predict(["tumour in the lung"])
    Registry(str(tmp_path / "local")).publish(folder, "cancer")
    (local,) = medray.load("cancer", storage_path=str(tmp_path / "local")).predict(
        ["tumour in the lung"]
    )
    assert answer.probabilities == local.probabilities
    release.export(tmp_path / "plain", merged=False)
    assert (tmp_path / "plain" / "adapter_model.safetensors").is_file()
    with pytest.raises(
        ArtifactError, match=f"{uri} has no release 'cancr'; .*did you mean 'cancer'"
    ):
        registry.resolve("cancr")


def test_publishers_and_promoters_at_once_get_a_number_each(folder: Path, uri: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        releases = list(pool.map(lambda _: Registry(uri).publish(folder, "cancer"), range(8)))
    assert sorted(release.record.version for release in releases) == list(range(1, 9))
    assert Registry(uri).store.names("checkpoints") == [releases[0].record.content_id]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda version: Registry(uri).point("cancer", "best", version), range(1, 9)))
    assert sorted(move.version for move in Registry(uri).history("cancer", "best")) == list(
        range(1, 9)
    )


def test_of_many_writers_of_one_object_exactly_one_succeeds(uri: str) -> None:
    store = ObjectStore(uri)
    with ThreadPoolExecutor(8) as pool:
        wins = list(
            pool.map(lambda number: store.create("1.json", str(number).encode()), range(32))
        )
    assert wins.count(True) == 1
    assert store.read("1.json") == str(wins.index(True)).encode()


def test_names_are_those_directly_below_over_every_page_of_a_listing(uri: str) -> None:
    store = ObjectStore(uri)
    for number in range(1003):  # a page holds 1000
        s3.put(store, f"many/{number:04}.json", b"")
    for name in ("many/inner/deep/1.json", "many/", "manyfold/other.json"):
        s3.put(store, name, b"")
    assert store.names("many") == [*(f"{number:04}.json" for number in range(1003)), "inner"]
    assert store.names("man") == []
    assert ObjectStore(uri.rpartition("/some/place")[0]).names("some") == ["place"]


@pytest.mark.parametrize(("num_conflicts", "is_written"), [(2, True), (99, False)])
def test_a_conditional_write_that_meets_another_under_way_is_tried_again_a_few_times(
    uri: str, monkeypatch: pytest.MonkeyPatch, num_conflicts: int, is_written: bool
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    conditions: list[str] = []

    def conflict(request: Any, usual: s3.Answer) -> Any:
        conditions.append(request.headers["If-None-Match"])
        return (
            s3.refusal(409, "ConditionalRequestConflict")
            if len(conditions) <= num_conflicts
            else usual(request)
        )

    s3.instead(monkeypatch, "put_object", conflict)
    assert ObjectStore(uri).create("1.json", b"x") is is_written
    assert 3 <= len(conditions) <= 10
    assert set(conditions) == {"*"}


@pytest.mark.parametrize(
    "lose", [s3.hang_up, lambda request: s3.refusal(500, "InternalError")], ids=["no answer", "500"]
)
def test_a_write_whose_answer_was_lost_and_that_was_repeated_still_counts_as_ours(
    uri: str, monkeypatch: pytest.MonkeyPatch, lose: s3.Answer
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    num_lost = 0

    def lose_reply(request: Any, usual: s3.Answer) -> Any:
        nonlocal num_lost
        answer = usual(request)
        if num_lost:
            return answer
        num_lost += 1
        return lose(request)

    s3.instead(monkeypatch, "put_object", lose_reply)
    store = ObjectStore(uri)
    assert store.create("1.json", b"same")
    assert num_lost == 1
    assert not store.create("1.json", b"same")
    assert not ObjectStore(uri).create("1.json", b"same")


def test_a_write_whose_answers_are_all_lost_is_an_error_and_not_another_writers(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    s3.instead(monkeypatch, "put_object", lambda request, usual: s3.hang_up(request))
    with pytest.raises(UnreachableError, match=f"^{uri}: "):
        ObjectStore(uri).create("1.json", b"x")


def test_a_folder_without_its_manifest_is_put_again_and_a_damaged_one_is_mended(
    folder: Path, uri: str
) -> None:
    registry = Registry(uri)
    store = registry.store
    assert isinstance(store, ObjectStore)
    name = f"checkpoints/{checkpoint.content_id(folder)}"
    s3.put(store, f"{name}/metrics.json", b"half a file")
    release = registry.publish(folder, "cancer")
    release.verify()
    s3.put(store, f"{name}/metrics.json", b"{}")
    s3.put(store, f"{name}/more.json", b"{}")
    registry.publish(folder, "cancer")
    assert store.read(f"{name}/metrics.json") == (folder / "metrics.json").read_bytes()
    assert "more.json" not in store.names(name)


def test_the_manifest_is_written_when_every_other_file_is_there(
    folder: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[list[str]] = []

    def list_first(request: Any, usual: s3.Answer) -> Any:
        if request.uri.endswith("manifest.json"):
            keys.append(
                [
                    entry["Key"]
                    for entry in s3.client().list_objects_v2(Bucket=store.bucket.name)["Contents"]
                ]
            )
        return usual(request)

    store = ObjectStore(uri)
    with monkeypatch.context() as patch:
        s3.instead(patch, "put_object", list_first)
        store.put_folder("checkpoints/any", folder)
    assert [len(there) for there in keys] == [len(list(files.files(folder))) - 1]


def test_what_was_changed_in_the_bucket_is_named_and_does_not_reach_the_cache(
    folder: Path, uri: str, tmp_path: Path
) -> None:
    release = Registry(uri).publish(folder, "cancer")
    name = f"checkpoints/{release.record.content_id}"
    release.verify()
    store = ObjectStore(uri)
    s3.put(store, f"{name}/metrics.json", b"{}")
    with pytest.raises(
        ArtifactError, match=rf"{uri}/{name}: differs from its manifest: metrics\.json was changed"
    ):
        release.verify()
    release.load()  # from the copy, which is whole
    (copy,) = (tmp_path / "cache" / "checkpoints").iterdir()
    copy.rename(tmp_path / "away")
    for attempt in (release.folder, release.load):
        with pytest.raises(ArtifactError, match=r"metrics\.json was changed"):
            attempt()
    assert list((tmp_path / "cache" / "checkpoints").iterdir()) == []
    manifest = store.read(f"{name}/manifest.json")
    s3.put(store, f"{name}/manifest.json", manifest.replace(b'"seed": 0', b'"seed": 1'))
    with pytest.raises(ArtifactError, match=r"manifest\.json was changed"):
        release.folder()


@pytest.mark.parametrize("key", ["../../../escaped", "//escaped", "inner/../../escaped"])
def test_an_object_cannot_be_written_outside_its_folder(uri: str, tmp_path: Path, key: str) -> None:
    store = ObjectStore(uri)
    s3.put(store, f"checkpoints/x/{key}", b"x")
    with pytest.raises(ArtifactError, match="has a path outside its folder"):
        store.get_folder("checkpoints/x")
    assert not list(tmp_path.rglob("escaped"))


def test_a_missing_object_and_a_missing_folder_are_reported(uri: str) -> None:
    store = open_store(f"{uri}/")
    assert store.uri == uri
    with pytest.raises(ArtifactError, match=rf"{uri}/1\.json: there is no such object"):
        store.read("1.json")
    with pytest.raises(ArtifactError, match=f"{uri}/checkpoints/x: there is no such folder"):
        store.get_folder("checkpoints/x")


def test_a_store_goes_to_another_process(uri: str) -> None:
    store = ObjectStore(uri)
    store.create("1.json", b"x")
    assert pickle.loads(pickle.dumps(store)).read("1.json") == b"x"


def test_a_missing_bucket_is_reported(folder: Path, uri: str) -> None:
    with pytest.raises(
        ArtifactError,
        match=r"^s3://no-such-bucket/x: there is no bucket 'no-such-bucket' at http://127",
    ) as info:
        Registry("s3://no-such-bucket/x").publish(folder, "cancer")
    assert "\n" not in str(info.value)
    with pytest.raises(ConfigError, match="s3://: names no bucket"):
        open_store("s3://")


def test_missing_credentials_and_a_missing_profile_are_reported(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigError, match="no credentials for S3: set AWS_ACCESS_KEY_ID"):
        Registry(uri).names()
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigError, match=f"{uri}: The config profile .nobody. could not be found"):
        Registry(uri)


def test_a_refused_access_is_reported_with_the_permissions_that_are_needed(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.instead(monkeypatch, "put_object", lambda request, usual: s3.refusal(403, "AccessDenied"))
    with pytest.raises(
        ArtifactError, match=rf"{uri}: PUT is refused \(AccessDenied\); .*allow s3:ListBucket"
    ):
        ObjectStore(uri).create("1.json", b"x")


def test_an_endpoint_that_does_not_answer_or_is_not_a_url_is_reported(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ArtifactError, match=f"{uri}: Could not connect to the endpoint URL"):
        Registry(uri).names()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nowhere")
    with pytest.raises(ConfigError, match=f"{uri}: Invalid endpoint: nowhere"):
        Registry(uri)


@pytest.mark.parametrize(
    ("module", "uri", "problem"),
    [
        ("botocore.session", "s3://bucket/x", r"S3 needs botocore.*pip install 'medray\[s3\]'"),
        ("obstore.store", "s3://bucket/x", r"S3 needs obstore.*pip install 'medray\[s3\]'"),
        (
            "obstore.store",
            "gs://bucket/x",
            r"Google Cloud Storage needs obstore.*pip install 'medray\[cloud\]'",
        ),
    ],
)
def test_a_missing_library_is_reported_with_the_command_that_installs_it(
    module: str, uri: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=problem):
        Registry(uri)
