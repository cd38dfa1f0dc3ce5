"""Checks of this machine for `medray doctor`: Python, packages, GPUs, Ray, disk, proxies.

Versions are read from files. Neither torch nor Ray is imported, and nothing is sent."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from medray.config.environment import cache_dir
from medray.errors.redaction import redact

Condition = Literal["ok", "warning", "missing", "broken"]
_FREE_GB = 5.0  # less is worth a warning
_SHARED_GB = 1.0  # of /dev/shm, where Ray keeps objects
_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_TMPDIR")
_LOOPBACK = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Check:
    name: str
    status: Condition  # missing: optional; broken: medray needs it
    detail: str
    remedy: str | None = None

    def render(self) -> str:
        line = f"{self.status:8} {self.name}: {self.detail}"
        return f"{line}; {self.remedy}" if self.remedy else line


_CORE = "predict"  # the extra that every command needs


def examine() -> list[Check]:
    """Return all checks of this machine."""
    return [
        _python(),
        *_packages(),
        *_constraints(Path(__file__).parents[2] / "constraints.txt"),
        *_torch(),
        *_ray(),
        *_disk(),
        *_proxies(),
    ]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("Python", "ok", f"{version}, {sys.executable}")
    return Check(
        "Python", "broken", f"{version}, {sys.executable}", "install Python 3.11, 3.12 or 3.13"
    )


def _packages() -> Iterator[Check]:
    """Compare the packages with what medray requires, first for every use, then per extra."""
    try:
        requirements = [Requirement(line) for line in metadata.requires("medray") or ()]
    except metadata.PackageNotFoundError:
        yield Check("medray", "warning", "is not installed as a package", "run `make setup`")
        return
    extras = sorted(metadata.metadata("medray").get_all("Provides-Extra") or ())
    core = [entry for entry in requirements if _applies(entry, _CORE)]
    yield _package_check("required packages", core, "broken")
    for extra in extras:
        entries = [
            entry
            for entry in requirements
            if _applies(entry, extra) and not _applies(entry, _CORE) and entry.name != "medray"
        ]
        if not entries:
            continue
        yield _package_check(f"extra {extra}", entries, "missing")


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _package_check(name: str, requirements: Sequence[Requirement], status: Condition) -> Check:
    mistakes, to_install = [], []
    for requirement in requirements:
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            state = "is not installed" if version is None else f"is {version}"
            mistakes.append(f"{requirement.name} {state}")
            requirement.marker = None
            to_install.append(str(requirement))
    if not mistakes:
        return Check(name, "ok", f"{len(requirements)} installed")
    return Check(name, status, ", ".join(mistakes), f"run `{_pip(to_install)}`")


def _pip(requirements: Sequence[str]) -> str:
    return shlex.join([sys.executable, "-m", "pip", "install", *requirements])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _constraints(path: Path) -> Iterator[Check]:
    """Compare the packages with the versions that were tested together, in a checkout."""
    if not path.is_file():
        return
    pins = dict(
        line.split("==") for line in path.read_text(encoding="utf-8").splitlines() if "==" in line
    )
    core = {canonicalize_name(Requirement(line).name) for line in metadata.requires("medray") or ()}
    others = [
        f"{name} {version}, tested {pin}"
        for name, pin in pins.items()
        if canonicalize_name(name) in core
        and (version := (_version(name) or pin).partition("+")[0]) != pin
    ]
    if others:
        remedy = "run `make setup` after `make clean`"
        yield Check("constraints.txt", "warning", "; ".join(others), remedy)
    else:
        yield Check("constraints.txt", "ok", "versions are those that were tested together")


def _torch() -> Iterator[Check]:
    """Compare the build of torch with the GPUs. The build stands in torch/version.py."""
    gpus = _gpus()
    yield Check("GPUs", "ok", ", ".join(gpus) or "none that nvidia-smi lists")
    spec = find_spec("torch")
    if not spec or not spec.origin:
        return  # a required package, reported above
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    build = re.search(r"^cuda\b[^=]*= *'([^']+)'", text, re.MULTILINE)
    detail = f"{_version('torch')}, " + (f"built for CUDA {build[1]}" if build else "for CPUs")
    if gpus and not build:
        remedy = "run `make clean setup TORCH_ARGS=--torch-backend=auto`"
        yield Check("torch", "warning", f"{detail}: it cannot use the GPUs", remedy)
    else:
        yield Check("torch", "ok", detail)


def _gpus() -> list[str]:
    if not (command := shutil.which("nvidia-smi")):
        return []
    query = [command, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return run.stdout.strip().splitlines() if run.returncode == 0 else []


def _ray() -> Iterator[Check]:
    variables = [
        f"{name}={redact(value)}" for name in _VARIABLES if (value := os.environ.get(name))
    ]
    version = _version("ray")
    yield Check(
        "Ray",
        "ok" if version else "missing",
        ", ".join([version or "not installed", *variables]),
        None if version else "install the extra `train` or `serve`, above",
    )
    memory = Path("/dev/shm")
    if version and memory.is_dir() and (free := _free_gb(memory)) < _SHARED_GB:
        yield Check(
            "/dev/shm",
            "warning",
            f"{free:.1f} GB are free for Ray's objects",
            "start the container with --shm-size=2g",
        )


def _disk() -> Iterator[Check]:
    places = {
        "this folder": Path.cwd(),
        "temporary files": Path(tempfile.gettempdir()),
        "cache of medray": cache_dir(),
        "cache of the Hub": Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser(),
    }
    for name, path in places.items():
        folder = next(place for place in (path, *path.parents) if place.exists())
        if not os.access(folder, os.W_OK):
            yield Check(
                name, "broken", f"{path} cannot be written to", "make it writable, or name another"
            )
            continue
        free = _free_gb(folder)
        status: Condition = "ok" if free >= _FREE_GB else "warning"
        yield Check(
            name,
            status,
            f"{path}, {free:.1f} GB free",
            None if status == "ok" else "make room: base models take gigabytes",
        )


def _free_gb(path: Path) -> float:
    return shutil.disk_usage(path).free / 1e9


def _proxies() -> Iterator[Check]:
    """Report proxies, and whether requests to this machine would go through one."""
    proxies = [
        f"{name}={redact(value)}"
        for name in ("http_proxy", "https_proxy", "all_proxy")
        if (value := os.environ.get(name) or os.environ.get(name.upper()))
    ]
    if not proxies:
        yield Check("proxies", "ok", "none")
        return
    without = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
    hosts = {host.strip() for host in without}
    if "*" in hosts or hosts.issuperset(_LOOPBACK):
        yield Check("proxies", "ok", ", ".join(proxies))
    else:
        yield Check(
            "proxies",
            "warning",
            f"{', '.join(proxies)}: requests to services of this machine go there too",
            f"run `export NO_PROXY={','.join(_LOOPBACK)}`",
        )
