"""A server without a release that is not published yet, without a checkpoint that is lost, and with
a relative path."""

import os
import time
from pathlib import Path

import pytest
import ray
from support import tiny
from support.serve_session import end_serve

from medray import cli
from medray.client import Client, RefusedError
from medray.errors import ConfigError, ServingError
from medray.registry.registry import Registry
from medray.runtime import cluster as runtime
from medray.runtime.cluster import Cluster, free_port
from medray.serving import app
from medray.serving.deployments import Deployments
from medray.serving.schemas import AppOptions


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    registry = Registry(str(tmp_path / "runs"))
    registry.publish(tiny.checkpoint(), "cancer")
    registry.point("cancer", "best", 1)
    return tmp_path / "runs"


def options(storage: Path, *releases: str) -> AppOptions:
    return AppOptions(
        releases=releases, storage_path=str(storage), precision="fp32", audit_log=None, follow_s=0.3
    )


def test_an_application_without_any_of_its_releases_is_refused_with_a_reason_for_each(
    storage: Path,
) -> None:
    with pytest.raises(
        ServingError,
        match=r"has no release 'findings'; allowed: cancer.*has no alias 'next'; allowed: best",
    ):
        app.build(options(storage, "findings@best", "cancer@next"))
    (Registry(str(storage)).resolve("cancer@1").folder() / "manifest.json").unlink()
    with pytest.raises(
        ServingError,
        match=(
            r"^cancer@1: .* because it has no manifest.json; "
            r"restore the checkpoint, or publish it again$"
        ),
    ):
        app.build(options(storage, "cancer@best"))


def test_the_path_that_a_server_shows_is_that_of_a_release_which_is_there(storage: Path) -> None:
    assert app.first_path(["findings@best", "cancer@best"], str(storage)) == "/v1/classify"
    assert app.first_path(["findings@best"], str(storage)) is None


@pytest.mark.parametrize("name", ["storage_path", "tokens_file", "audit_log", "require_signature"])
def test_a_relative_path_that_a_cluster_cannot_know_is_refused(
    storage: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "is_in_folder_of_caller", lambda: False)
    with pytest.raises(
        ConfigError,
        match=f"^{name}: runs: a relative path .* write an absolute path, such as /srv/medray/runs",
    ):
        app.build(options(storage, "cancer@best").model_copy(update={name: "runs"}))
    app.build(options(storage, "cancer@best").model_copy(update={"audit_log": "~/audit.log"}))


def test_a_relative_path_becomes_absolute_if_the_caller_works_in_the_folder(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(storage.parent)
    monkeypatch.setattr(runtime, "is_in_folder_of_caller", lambda: True)
    deployments = Deployments.of(options(Path("runs"), "cancer@best"))
    assert deployments.options.storage_path == str(storage)


@pytest.mark.ray
def test_a_worker_knows_whether_it_works_in_the_folder_of_the_process_that_uses_ray(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ray.remote(num_cpus=0)(runtime.is_in_folder_of_caller)
    folder = ray.get(ray.remote(num_cpus=0)(lambda: os.getcwd()).remote())
    monkeypatch.chdir(folder)
    assert ray.get(here.remote())
    monkeypatch.chdir(tmp_path)
    assert not ray.get(here.remote())


@pytest.mark.ray
@pytest.mark.document(
    "001",
    "a Hugging Face Space",
    where="`medray export NAME FOLDER --bundle`, [operating.md](guides/operating.md)",
    how="by a recipe; no Space is run",
)
def test_a_bundle_is_served_alone_and_a_missing_release_is_named_and_taken_once_it_is_published(
    storage: Path, tmp_path: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    assert (
        cli.main(["export", "cancer@best", str(bundle), "--bundle", "--storage-path", str(storage)])
        == 0
    )
    assert f"medray serve cancer@best --storage-path {bundle}" in capsys.readouterr().out
    storage.rename(tmp_path / "away")
    try:
        with app.serving(
            options(bundle, "cancer@best", "findings@best"), host="127.0.0.1", port=free_port()
        ) as url:
            client = Client(url)
            health = client.health()
            assert (health["status"], health["releases"]["cancer@best"]["status"]) == (
                "degraded",
                "ok",
            )
            assert health["releases"]["findings@best"]["status"] == "missing"
            assert "has no release 'findings'" in health["releases"]["findings@best"]["error"]
            assert client.classify(["tumour"], model="cancer").version == 1
            with pytest.raises(RefusedError, match="503 this release is not loaded yet"):
                client.classify(["tumour"], model="findings")
            Registry(str(bundle)).publish(tiny.checkpoint(), "findings")
            Registry(str(bundle)).point("findings", "best", 1)
            end = time.monotonic() + 60
            while client.health()["status"] != "ok":
                assert time.monotonic() < end, client.health()
                time.sleep(0.2)
            assert client.classify(["tumour"], model="findings").release == "findings"
    finally:
        end_serve()


@pytest.mark.ray
@pytest.mark.slow
def test_a_replica_that_cannot_start_ends_the_command_with_its_reason(
    storage: Path, cluster: Cluster
) -> None:
    (Registry(str(storage)).resolve("cancer@1").folder() / "adapter_model.safetensors").unlink()
    try:
        with (
            pytest.raises(
                ServingError,
                match=(
                    r"^cancer@best: its replica did not start: .*adapter_model.safetensors is "
                    r"missing[^\n]*$"
                ),
            ),
            app.serving(options(storage, "cancer@best"), host="127.0.0.1", port=free_port()),
        ):
            pass
    finally:
        end_serve()
