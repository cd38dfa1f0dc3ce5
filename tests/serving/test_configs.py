"""Every YAML for Ray Serve that ships is one that Ray reads, and asks for what the application knows."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from medray.serving import front
from medray.serving.addresses import is_loopback
from medray.serving.schemas import AppOptions, Limits

FOLDER = Path(__file__).parents[2] / "serve_configs"
SHIPPED = sorted(FOLDER.glob("*.yaml"))


def read(path: Path) -> ServeDeploySchema:
    return ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))


def test_there_are_the_three_of_them() -> None:
    assert [path.stem for path in SHIPPED] == ["classification", "gpu", "quickstart"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_config_fits_rays_schema_and_our_options(path: Path) -> None:
    (application,) = read(path).applications
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    options = AppOptions.model_validate(application.args)
    names = {deployment.name for deployment in application.deployments}
    assert names <= {"Ingress", *options.releases}
    assert names >= set(options.releases)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_config_cannot_starve_a_batch_outlast_the_proxy_or_open_a_door(path: Path) -> None:
    config = read(path)
    (application,) = config.applications
    options = AppOptions.model_validate(application.args)
    assert config.http_options.request_timeout_s > options.limits.timeout_s
    assert is_loopback(config.http_options.host) or options.tokens_file
    assert config.controller_options is not None
    environment = (config.controller_options.runtime_env or {})["env_vars"]
    assert environment.items() >= front.environment(options.limits.body_bytes).items()
    for deployment in application.deployments:
        found: dict[str, Any] = deployment.model_dump(exclude_unset=True)
        if "max_ongoing_requests" in found:
            assert found["max_ongoing_requests"] == options.limits.ongoing_requests
        if scaling := found.get("autoscaling_config"):
            assert scaling["target_ongoing_requests"] < options.limits.ongoing_requests
            assert scaling["look_back_period_s"] > 10  # Serve's metrics interval


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"releases": []}, "releases"),
        ({"releases": ["a", "a"]}, "stand there twice"),
        ({"releases": ["a"], "storage": "x"}, "storage"),
        ({"releases": ["a"], "limits": {"tokens": 10, "waiting_tokens": 5}}, "must fit the queue"),
    ],
)
def test_wrong_options_are_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AppOptions.model_validate(args)


def test_the_serving_page_names_every_option_and_limit() -> None:
    page = (FOLDER.parent / "docs" / "serving.md").read_text(encoding="utf-8")
    for option in AppOptions.model_fields:
        assert f"`{option}`" in page, option
    for limit in Limits.model_fields:
        assert f"`limits.{limit}`" in page, limit
