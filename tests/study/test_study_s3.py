"""A study with releases in S3."""

from pathlib import Path
from typing import Any

import pytest
from support import s3, tiny
from support.in_process import run

from medray.errors import ArtifactError, ConfigError
from medray.registry.registry import Registry
from medray.storage.object_store import ObjectStore
from medray.study import gc, preflight
from medray.study.run import Run


def test_a_place_is_tried_before_a_study_starts(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(uri)
    for _ in range(2):
        store.check()
    assert Registry(uri).names() == []
    with pytest.raises(ArtifactError, match="there is no bucket 'nowhere'"):
        ObjectStore("s3://nowhere/x").check()

    def careless(request: Any, usual: s3.Answer) -> Any:
        request.headers = {
            name: value for name, value in request.headers.items() if name != "If-None-Match"
        }
        return usual(request)

    s3.instead(monkeypatch, "put_object", careless)
    with pytest.raises(ConfigError, match="this endpoint ignores If-None-Match"):
        store.check()


def test_a_study_publishes_to_s3_and_its_losing_trials_are_removed_by_what_is_published_there(
    uri: str, tmp_path: Path
) -> None:
    settings = [
        "search.space={train.learning_rate: {grid: [0.01, 1.0e-9]}}",
        f"publish={{name: cancer, allow_worse: true, storage_path: '{uri}'}}",
    ]
    study = tiny.study(tmp_path, *settings)
    preflight.check(study)
    outcome = run(study)
    assert outcome.release is not None
    release = Registry(uri).resolve("cancer@best")
    assert (release.reference, release.registry.store.uri) == ("cancer@1", uri)
    assert release.record.test is not None
    release.verify()
    assert not (tmp_path / "runs" / "releases").exists()
    again = run(study, here=Run.resume(study))
    assert again.release is not None
    assert again.release.reference == "cancer@1"
    assert {item.trial for item in gc.find(outcome.run.folder).surplus} == {"tiny-bert-001"}


def test_a_study_whose_bucket_is_not_there_is_refused_before_it_starts(
    uri: str, tmp_path: Path
) -> None:
    study = tiny.study(tmp_path, "publish={name: cancer, storage_path: 's3://nowhere/releases'}")
    with pytest.raises(
        ConfigError,
        match=r"publish\.storage_path: s3://nowhere/releases: there is no bucket 'nowhere'",
    ):
        preflight.check(study)
    with pytest.raises(
        ConfigError,
        match=(
            r"runs need a folder that each node can read; set publish\.storage_path for releases "
            r"in "
            r"an object store"
        ),
    ):
        preflight.check(tiny.study(tmp_path, f"storage_path={uri}"))
