"""Every YAML for Ray Serve that ships fits Ray's schema and the application's options, and serves
what the studies of jobs/studies publish."""

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
from support import tiny
from support.serve_session import end_serve

from medray.client import Client
from medray.config.addresses import is_loopback
from medray.config.load import load_study
from medray.config.study import StudyConfig
from medray.errors import ServingError
from medray.registry.registry import Registry
from medray.runtime.cluster import Cluster, free_port
from medray.serving import front
from medray.serving.schemas import AppOptions

FOLDER = Path(__file__).parents[2] / "serve_configs"
CONFIG_FILES = sorted(FOLDER.glob("*.yaml"))
STUDIES = FOLDER.parent / "jobs" / "studies"


def read(path: Path) -> ServeDeploySchema:
    return ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))


def test_there_are_the_five_of_them() -> None:
    assert [path.stem for path in CONFIG_FILES] == [
        "applications",
        "classification",
        "gpu",
        "qa",
        "quickstart",
    ]


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.stem)
def test_a_config_fits_rays_schema_and_our_options(path: Path) -> None:
    for application in read(path).applications:
        module, _, name = application.import_path.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
        options = AppOptions.model_validate(application.args)
        names = {deployment.name for deployment in application.deployments}
        assert names <= {"Ingress", *options.releases}
        assert names >= set(options.releases)


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.stem)
def test_a_config_cannot_starve_a_batch_outlast_the_proxy_or_open_a_door(path: Path) -> None:
    deployment_of = read(path)
    assert deployment_of.controller_options is not None
    environment = (deployment_of.controller_options.runtime_env or {})["env_vars"]
    for application in deployment_of.applications:
        options = AppOptions.model_validate(application.args)
        assert deployment_of.http_options.request_timeout_s > options.limits.timeout_s
        assert is_loopback(deployment_of.http_options.host) or options.tokens_file
        assert environment.items() >= front.environment(options.limits.body_bytes).items()
        for deployment in application.deployments:
            settings: dict[str, Any] = deployment.model_dump(exclude_unset=True)
            if "max_ongoing_requests" in settings:
                assert settings["max_ongoing_requests"] == options.limits.ongoing_requests
            if scaling := settings.get("autoscaling_config"):
                assert scaling["target_ongoing_requests"] < options.limits.ongoing_requests
                assert scaling["look_back_period_s"] > 10  # Serve's metrics interval


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.stem)
def test_a_config_names_what_a_study_that_ships_publishes(path: Path) -> None:
    storage_of_releases = {
        f"{study.publish.name}@{study.publish.alias}"
        for study in map(load, STUDIES.glob("*.yaml"))
        if study.publish
    }
    assert {
        reference
        for application in read(path).applications
        for reference in application.args["releases"]
    } <= storage_of_releases


def load(path: Path, *settings: str) -> StudyConfig:
    return load_study([path], list(settings))


@pytest.fixture(scope="module")
def storage_of_releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the studies publish, under their names and aliases, with tiny bases and made-up rows."""
    place = tmp_path_factory.mktemp("published")
    registry = Registry(str(place / "runs"))
    rows = tiny.abstracts(place)
    several = place / "several.jsonl"
    several.write_text(
        rows.read_text().replace('"other"', '["other", "fever"]').replace('"cancer"', '["cancer"]')
    )
    data = {
        "quickstart": ("bert", f"{{name: jsonl, path: {rows}, id: id}}"),
        "findings": ("bert", f"{{name: jsonl, path: {several}, id: id}}"),
        "pubmedqa": ("llama", f"{{name: jsonl, path: {tiny.choices(place)}, id: id}}"),
        "seed_003_smollm": (
            "llama",
            f"{{name: instructions, path: {tiny.instructions(place)}, id: id}}",
        ),
    }
    for name, (family, rows_of) in data.items():
        folder = place / name
        folder.mkdir()
        study = load(
            STUDIES / f"{name}.yaml",
            f"base_models=[{{source: {tiny.base(folder, family)}}}]",
            f"data.format={rows_of}",
            *(["data.split={kind: stratified}"] if name == "quickstart" else []),
            "task.max_length=100",
            "train={epochs: 1, token_budget: 512}",
            "model={precision: fp32}",
            "resources.cpus_per_worker=1",
            *(
                ["task.system=the study of", "task.max_new_tokens=6"]
                if name == "seed_003_smollm"
                else []
            ),
        )
        assert study.publish is not None
        release = registry.publish(tiny.trial(study, folder).run().checkpoint, study.publish.name)
        registry.point(study.publish.name, str(study.publish.alias), release.record.version)
    return place / "runs"


@contextmanager
def deployment_of(name: str, storage: Path) -> Iterator[str]:
    """The YAML as it ships, but for port, storage path and audit log, and with CPUs for a machine
    of four."""
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    content["http_options"]["port"] = port = free_port()
    for application in content["applications"]:
        application["args"] |= {
            "storage_path": str(storage),
            "audit_log": None,
            "precision": "fp32",
            "follow_s": 0.3,
        }
        for deployment in application["deployments"]:
            if "ray_actor_options" in deployment:
                deployment["ray_actor_options"] = {"num_cpus": 0.5}
    try:
        serve.start(
            proxy_location=content["proxy_location"],
            http_options=content["http_options"],
            controller_options=content["controller_options"],
        )
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(content))
        end = time.monotonic() + 300
        while {application.status for application in serve.status().applications.values()} != {
            "RUNNING"
        }:
            assert "DEPLOY_FAILED" not in {
                application.status for application in serve.status().applications.values()
            }, serve.status()
            assert time.monotonic() < end, serve.status()
            time.sleep(0.3)
        _get_global_client().wait_for_proxies_serving()
        yield f"http://127.0.0.1:{port}"
    finally:
        end_serve()


ANSWERED = ("pubmedqa", len(tiny.SIGNS), "medical-assistant")


def ask_both(client: Client) -> tuple[str, int, str]:
    """Return the release that chooses, its number of labels, and the release that chats."""
    choice = client.choose(["tumour in the lung"], model="pubmedqa")
    answer = client.chat([{"role": "user", "content": "fever"}], model="medical-assistant")
    return choice.release, len(choice.predictions[0].ranked), answer.release


@pytest.mark.ray
@pytest.mark.slow
def test_qa_answers_a_choice_and_a_conversation(
    cluster: Cluster, storage_of_releases: Path
) -> None:
    with deployment_of("qa", storage_of_releases) as url:
        assert ask_both(Client(url)) == ANSWERED


@pytest.mark.ray
@pytest.mark.slow
def test_applications_answer_at_a_path_each(cluster: Cluster, storage_of_releases: Path) -> None:
    with deployment_of("applications", storage_of_releases) as url:
        assert Client(f"{url}/abstracts").classify(["tumour in the lung"]).release == "cancer"
        assert ask_both(Client(f"{url}/questions")) == ANSWERED
        with pytest.raises(ServingError, match="404"):
            Client(f"{url}/abstracts").classify(["fever"], model="pubmedqa")


@pytest.mark.ray
@pytest.mark.slow
def test_classification_answers_and_wakes_what_sleeps_and_names_what_is_missing(
    cluster: Cluster, storage_of_releases: Path, tmp_path: Path
) -> None:
    with deployment_of("classification", storage_of_releases) as url:
        client = Client(url, timeout_s=120)
        assert client.health()["releases"]["findings@best"]["status"] == "idle"
        assert client.classify(["tumour in the lung"], model="cancer").release == "cancer"
        assert (
            client.classify(["tumour in the lung"], model="findings").predictions[0].label is None
        )
    Registry(str(storage_of_releases)).resolve("cancer@best").bundle(tmp_path / "alone")
    with deployment_of("classification", tmp_path / "alone") as url:
        health = Client(url).health()
        assert health["releases"]["findings@best"]["status"] == "missing"
        assert "has no release 'findings'" in health["releases"]["findings@best"]["error"]
        assert Client(url).classify(["tumour in the lung"], model="cancer").release == "cancer"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"releases": []}, "releases"),
        ({"releases": ["a", "a"]}, "is listed twice"),
        ({"releases": ["a"], "storage": "x"}, "storage"),
        (
            {"releases": ["a"], "precision": "int8"},
            "int8 is not supported.*; allowed: auto, fp32, bf16, fp16",
        ),
        (
            {"releases": ["a"], "limits": {"tokens": 10, "waiting_tokens": 5}},
            "cannot hold one request",
        ),
    ],
)
def test_wrong_options_are_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AppOptions.model_validate(args)
