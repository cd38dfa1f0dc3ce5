"""The files of cluster/ fit their readers: Ray's schema of `ray up`, the Dockerfile's sources,
shellcheck, and the versions of constraints.txt."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

import medray

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
RAY_UP = ("aws", "gcp")
_FROM = re.compile(r"^FROM (\S+) AS (\S+)$", re.MULTILINE)


def pinned_version(package: str) -> str:
    match = re.search(
        rf"^{re.escape(package)}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
    assert match, package
    return match[1]


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


def commands(dockerfile: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile with their arguments, continued lines joined."""
    text = re.sub(
        r"\\\n\s*",
        "",
        "\n".join(line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")),
    )
    return [
        (name, rest)
        for name, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())
    ]


DOCKERFILE = commands((CLUSTER / "Dockerfile").read_text())


def test_every_image_names_pinned_versions_and_an_accelerator_that_the_dockerfile_builds() -> None:
    references = {
        (path.name, tag)
        for path in [*CLUSTER.rglob("*.yaml"), CLUSTER / "Dockerfile"]
        for tag in re.findall(r"registry\.example\.com/medray:([\w.-]+)", path.read_text())
    }
    tags = {tag for name, tag in references if name == "Dockerfile"}
    assert tags == {
        f"{medray.__version__}-ray{pinned_version('ray')}-{kind}"
        for kind in ("cpu", "cuda", "serve")
    }
    assert len(references) >= 10
    assert {tag for _, tag in references} <= tags


def test_every_version_of_ray_that_is_written_down_is_the_pinned_one() -> None:
    versions = [
        (path.name, version)
        for path in CLUSTER.rglob("*.yaml")
        for version in re.findall(r"rayVersion: (\S+)", path.read_text())
    ]
    assert len(versions) == 3
    assert {version for _, version in versions} == {pinned_version("ray")} == {ray.__version__}


@pytest.mark.document(
    "001",
    "a Docker image",
    where="`cluster/Dockerfile`",
    how=(
        "its parts are checked in each run of the tests; it is built where there is a Docker daemon"
    ),
)
def test_what_the_dockerfile_copies_is_there_and_every_stage_stands_before_its_use() -> None:
    stages: set[str] = set()
    for name, rest in DOCKERFILE:
        if name == "FROM":
            base, _, stage = rest.partition(" AS ")
            bases = {base.replace("${ACCELERATOR}", kind) for kind in ("cpu", "cuda")}
            assert bases <= stages or re.fullmatch(r"python:3\.(11|12|13)-slim-bookworm", base), (
                base
            )
            stages.add(stage)
        elif name == "COPY":
            for source in shlex.split(rest)[:-1]:
                assert (ROOT / source).exists(), source
    assert stages == {"system", "torch-cpu", "torch-cuda", "node", "serve"}


def test_the_images_install_under_the_constraints_and_run_as_nobody_who_may_install() -> None:
    lines = [
        line
        for name, rest in DOCKERFILE
        if name == "RUN"
        for line in re.findall(r"(?:pip install|python install\.py)[^&]*", rest)
    ]
    assert len(lines) == 5
    *outside, own = lines
    assert all("-c constraints.txt" in line for line in outside)
    assert "--no-deps" in own
    extras = re.search(r"'\.\[(.*)]'", " ".join(outside))
    assert extras
    names = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert set(extras[1].split(",")) <= set(names)
    users = [rest for name, rest in DOCKERFILE if name == "USER"]
    assert users == ["medray"]
    assert max(i for i, (name, _) in enumerate(DOCKERFILE) if name == "RUN") < DOCKERFILE.index(
        ("USER", "medray")
    )


def sections(definition: str) -> dict[str, str]:
    """Return the sections of an Apptainer definition by name. The empty name is its header."""
    parts = re.split(r"^%(\w+)\n", definition, flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_apptainer_definition_takes_the_steps_of_the_dockerfiles_node() -> None:
    text = (CLUSTER / "apptainer.def").read_text()
    parts = sections(text)
    names = {"arguments", "files", "post", "environment", "runscript", "test"}
    assert set(parts) - {""} == names
    header = dict(re.findall(r"^(\w+): (.+)$", parts[""], re.MULTILINE))
    bases = {rest.split()[0] for name, rest in DOCKERFILE if name == "FROM" and ":" in rest}
    assert {header["From"]} == bases
    assert header["Bootstrap"] == "docker"

    node = DOCKERFILE[: DOCKERFILE.index(("FROM", "node AS serve"))]
    install = re.compile(r"python install\.py [^&;\n]*[^&;\s]")
    steps = [line for name, rest in node if name == "RUN" for line in install.findall(rest)]
    assert install.findall(parts["post"]) == steps
    assert len(steps) == 4

    files = [line.split() for line in parts["files"].splitlines() if line.strip()]
    copies = [shlex.split(rest)[:-1] for name, rest in node if name == "COPY"]
    sources = {source for names in copies for source in names} - {"medray/__init__.py"}
    assert {source for source, _ in files} == sources
    assert all(Path(place).parent == Path("/opt/medray") for _, place in files)

    variables = dict(re.findall(r"(\w+)=(\S+)", parts["environment"]))
    assert variables.pop("PYTHONNOUSERSITE") == "1"
    settings = [rest for name, rest in node if name == "ENV"]
    assert variables.items() <= dict(re.findall(r"(\w+)=(\S+)", " ".join(settings))).items()


def test_scripts_of_the_apptainer_definition_are_shell_with_values_that_have_a_default() -> None:
    text = (CLUSTER / "apptainer.def").read_text()
    parts = sections(text)
    values = dict(re.findall(r"^\s*(\w+)=(\w+)$", parts["arguments"], re.MULTILINE))
    assert set(re.findall(r"{{ (\w+) }}", text)) == set(values) == {"accelerator"}
    for name in ("post", "environment", "runscript", "test"):
        script = parts[name].replace("{{ accelerator }}", values["accelerator"])
        checks = (["sh", "-n"], [Path(sys.executable).with_name("shellcheck"), "-s", "sh", "-"])
        for command in checks:
            process = subprocess.run(command, input=script, capture_output=True, text=True)
            assert process.returncode == 0, (name, process.stdout, process.stderr)


@pytest.mark.parametrize("name", RAY_UP)
def test_a_cluster_file_fits_rays_schema_and_names_only_node_types_that_it_has(name: str) -> None:
    config = read(CLUSTER / f"{name}.yaml")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    assert config["provider"]["type"] == name
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert sum(kind.get("min_workers", 0) for kind in types.values()) <= config["max_workers"]
    assert types["gpu"]["resources"]["GPU"] >= 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"max_worker": 1}, schema)


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_prepares_a_cluster_file_as_ray_up_does_and_still_finds_it_valid(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(read(CLUSTER / f"{name}.yaml"))
    validate_config(prepared)
    assert prepared["available_node_types"]["head"]["max_workers"] == 0


@pytest.mark.parametrize("name", RAY_UP)
def test_every_node_of_a_cloud_asks_for_the_token_that_it_is_given(name: str) -> None:
    config = read(CLUSTER / f"{name}.yaml")
    start_lines = [
        line
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for line in config[key]
        if "ray start" in line
    ]
    assert len(start_lines) == 2
    assert all(line.startswith("RAY_AUTH_MODE=token ray start ") for line in start_lines)
    (mount,) = config["file_mounts"]
    assert mount == "/home/medray/.ray/auth_token"


def test_shell_scripts_pass_shellcheck() -> None:
    scripts = [*CLUSTER.glob("*.sh"), ROOT / ".ci" / "run"]
    assert len(scripts) == 3
    process = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), *scripts],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 0, process.stdout


def served_with(tmp_path: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run cluster/serve.sh beside a `medray` that prints its arguments."""
    fake = tmp_path / "medray"
    fake.write_text(
        '#!/bin/sh\necho "$@"\nfor last; do :; done\n[ -f "$last" ] && cat "$last"\nexit 0\n'
    )
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path), **settings}
    return subprocess.run(
        [CLUSTER / "serve.sh"], env=environment, capture_output=True, text=True, timeout=20
    )


def test_the_serving_image_starts_only_with_releases_and_with_tokens_or_the_explicit_word(
    tmp_path: Path,
) -> None:
    assert "MEDRAY_RELEASES is empty; name a release" in served_with(tmp_path).stderr
    bare = served_with(tmp_path, MEDRAY_RELEASES="cancer@best")
    assert bare.returncode == 1
    assert "MEDRAY_OPEN_TO_ALL=1" in bare.stderr
    assert not bare.stdout
    answer = served_with(tmp_path, MEDRAY_RELEASES="cancer@best findings@2", MEDRAY_OPEN_TO_ALL="1")
    assert answer.stdout.strip() == (
        "serve cancer@best findings@2 --host 0.0.0.0 --port 7860 --storage-path /releases "
        "--open-to-all"
    )
    refusal = served_with(
        tmp_path,
        MEDRAY_RELEASES="cancer@best",
        MEDRAY_TOKENS_SHA256="aa,bb",
        MEDRAY_STORAGE_PATH="s3://b/p",
    )
    command, *digests = refusal.stdout.split("\n")
    assert command.startswith(
        "serve cancer@best --host 0.0.0.0 --port 7860 --storage-path s3://b/p --tokens-file "
    )
    assert digests[:2] == ["aa", "bb"]


def test_panels_of_the_dashboard_show_metrics_and_labels_that_the_code_has() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "medray").rglob("*.py"))
    metric_names = re.findall(
        r'(Counter|Histogram|Gauge)\(\s*"(medray_\w+)"[^)]*?tag_keys=\(([^)]*)\)', code
    )
    suffixes = {"Counter": ("_total",), "Histogram": ("_bucket", "_sum", "_count"), "Gauge": ("",)}
    names = {
        f"ray_{name}{suffix}": set(re.findall(r'"(\w+)"', keys))
        for kind, name, keys in metric_names
        for suffix in suffixes[kind]
    }
    board = json.loads((CLUSTER / "grafana.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    expressions += [
        variable["query"]["query"]
        for variable in board["templating"]["list"]
        if variable["type"] == "query"
    ]
    panels = set()
    for expression in expressions:
        metrics = set(re.findall(r"\bray_\w+", expression))
        assert metrics
        assert metrics <= names.keys(), expression
        panels |= metrics
        labels = {
            part.strip()
            for group in re.findall(r"by \(([^)]*)\)", expression)
            for part in group.split(",")
        }
        labels |= set(re.findall(r'(\w+)=~?"', expression))
        assert labels <= set.union(*(names[metric] for metric in metrics)) | {"le"}, expression
    assert {name for _, name, _ in metric_names} == {
        re.sub("^ray_|_total$|_bucket$|_sum$|_count$", "", metric) for metric in panels
    }
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) >= 8
