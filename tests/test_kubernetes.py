"""cluster/kuberay against KubeRay's own definitions, Serve's schema, and each other. Nothing here
reaches a Kubernetes."""

import importlib
import os
import re
import shlex
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from medray.config.load import load_study
from medray.serving import front
from medray.serving.schemas import AppOptions

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "cluster" / "kuberay"
RAY = ("raycluster", "rayjob-study", "rayservice")
SPECS = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}


def read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return document


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    for key in SPECS[document["kind"]]:
        spec = spec[key]
    return spec


def groups(document: dict[str, Any]) -> list[dict[str, Any]]:
    spec = cluster_of(document)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without room for fields that it does not name: Kubernetes drops them without a
    word."""
    if "properties" in schema:
        schema = {
            "additionalProperties": False,
            **schema,
            "properties": {name: strict(part) for name, part in schema["properties"].items()},
        }
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            schema["additionalProperties"] = True
    if isinstance(schema.get("items"), dict):
        schema = {**schema, "items": strict(schema["items"])}
    return schema


@cache
def definition(kind: str) -> dict[str, Any]:
    folder = os.environ.get("MEDRAY_KUBERAY_CRDS")
    if not folder or not Path(folder).is_dir():
        pytest.skip(
            "MEDRAY_KUBERAY_CRDS names no folder of KubeRay's definitions "
            "(ray.io_rayclusters.yaml and the others)"
        )
    path = Path(folder) / f"ray.io_{kind.lower()}s.yaml"
    whole = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [version for version in whole["spec"]["versions"] if version["name"] == "v1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def test_there_is_what_a_cluster_a_study_and_a_service_need() -> None:
    names = {path.stem for path in FOLDER.glob("*.yaml")}
    assert names == {*RAY, "storage", "networkpolicy"}
    assert {read(name)["kind"] for name in RAY} == set(SPECS)


@pytest.mark.parametrize("name", RAY)
def test_a_manifest_fits_kuberays_definition_and_a_field_that_it_does_not_know_is_found(
    name: str,
) -> None:
    document = read(name)
    schema = definition(document["kind"])
    jsonschema.validate(document, schema)
    wrong = deepcopy(document)
    groups(wrong)[0]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(jsonschema.ValidationError, match="livenesProbe"):
        jsonschema.validate(wrong, schema)


@pytest.mark.parametrize("name", RAY)
def test_every_pod_is_bounded_probed_unprivileged_and_asks_for_the_token(name: str) -> None:
    document = read(name)
    assert cluster_of(document)["authOptions"] == {"mode": "token"}
    for group in groups(document):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod["volumes"]}
        claims = [
            volume["persistentVolumeClaim"]["claimName"]
            for volume in pod["volumes"]
            if "persistentVolumeClaim" in volume
        ]
        assert claims == [read("storage")["metadata"]["name"]]


@pytest.mark.parametrize("name", RAY)
def test_gpus_and_the_image_with_cuda_go_together_and_such_pods_are_let_onto_gpu_nodes(
    name: str,
) -> None:
    for group in groups(read(name)):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert (
            has_gpu
            == container["image"].endswith("-cuda")
            == ("tolerations" in pod)
            == ("nodeSelector" in pod)
        )


@pytest.mark.parametrize("name", RAY)
def test_the_head_computes_nothing_and_its_dashboard_is_reached_by_the_workers(name: str) -> None:
    head, *workers = groups(read(name))
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["rayStartParams"]["dashboard-host"] == "0.0.0.0"
    assert all(
        group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] for group in workers
    )
    assert any(group["replicas"] for group in workers)


def test_a_study_whose_pods_are_one_group_is_not_scaled_while_it_runs() -> None:
    spec = cluster_of(read("rayjob-study"))
    assert "enableInTreeAutoscaling" not in spec
    assert all(group["minReplicas"] == group["maxReplicas"] for group in spec["workerGroupSpecs"])


def test_what_a_job_is_entered_by_is_there_and_its_settings_are_a_studys() -> None:
    command = shlex.split(read("rayjob-study")["spec"]["entrypoint"])
    assert command[0] == "python"
    assert (ROOT / command[1]).is_file()
    files = [ROOT / word for word in command[2:] if "=" not in word]
    study = load_study(files, [word for word in command if "=" in word])
    assert study.storage_path.startswith(mount_of(read("rayjob-study"), "shared") + "/")


def mount_of(document: dict[str, Any], volume: str) -> str:
    mounts = groups(document)[0]["template"]["spec"]["containers"][0]["volumeMounts"]
    return str(next(mount["mountPath"] for mount in mounts if mount["name"] == volume))


def test_what_is_served_fits_serves_schema_and_lies_where_the_pods_have_it() -> None:
    document = read("rayservice")
    served = ServeDeploySchema.model_validate(yaml.safe_load(document["spec"]["serveConfigV2"]))
    (application,) = served.applications
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    options = AppOptions.model_validate(application.args)
    assert {deployment.name for deployment in application.deployments} == {
        "Ingress",
        *options.releases,
    }
    assert served.http_options.host == "0.0.0.0"
    assert served.controller_options is not None
    environment = (served.controller_options.runtime_env or {})["env_vars"]
    assert environment.items() >= front.environment(options.limits.body_bytes).items()
    assert served.http_options.request_timeout_s > options.limits.timeout_s
    assert options.storage_path.startswith(mount_of(document, "shared") + "/")
    assert str(options.tokens_file).startswith(mount_of(document, "tokens") + "/")
    deployment = next(
        deployment.model_dump(exclude_unset=True)
        for deployment in application.deployments
        if deployment.name != "Ingress"
    )
    assert deployment["max_ongoing_requests"] == options.limits.ongoing_requests
    assert (
        deployment["autoscaling_config"]["max_replicas"]
        > deployment["autoscaling_config"]["min_replicas"]
        >= 2
    )
    workers = groups(document)[1:]
    room = sum(
        group["maxReplicas"]
        * group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]
        for group in workers
    )
    assert room >= deployment["autoscaling_config"]["max_replicas"] + 2  # the ingress has two


def test_a_serving_pod_gets_requests_only_where_its_proxy_answers() -> None:
    document = read("rayservice")
    port = yaml.safe_load(document["spec"]["serveConfigV2"])["http_options"]["port"]
    for group in groups(document)[1:]:
        (container,) = group["template"]["spec"]["containers"]
        assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": port}
        assert port in {ports["containerPort"] for ports in container["ports"]}


def test_the_network_policy_covers_every_pod_and_opens_only_ports_that_they_have() -> None:
    policy = read("networkpolicy")["spec"]
    ((key, value),) = policy["podSelector"]["matchLabels"].items()
    pods = [group["template"] for name in RAY for group in groups(read(name))] + [
        read("rayjob-study")["spec"]["submitterPodTemplate"]
    ]
    assert all(pod["metadata"]["labels"][key] == value for pod in pods)
    ports = {port["port"] for rule in policy["ingress"] for port in rule.get("ports", [])}
    kinds = {
        port["containerPort"]
        for pod in pods
        for container in pod["spec"]["containers"]
        for port in container.get("ports", [])
    }
    assert ports <= kinds | {52365}  # Ray's agent, which probes request too
    assert all(rule["from"] for rule in policy["ingress"])  # an empty list would let everybody in
    assert policy["policyTypes"] == ["Ingress", "Egress"]


def words(document: Any) -> Iterator[str]:
    if isinstance(document, dict):
        for key, value in document.items():
            yield from (str(key), *words(value))
    elif isinstance(document, list):
        for value in document:
            yield from words(value)
    else:
        yield str(document)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "cluster").rglob("*.yaml")), ids=lambda path: path.stem
)
def test_no_definition_holds_a_secret(path: Path) -> None:
    for word in words(yaml.safe_load(path.read_text())):
        assert not re.search(r"hf_\w{10}|AKIA\w{10}|[0-9a-f]{64}", word), word
