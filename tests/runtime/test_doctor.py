"""Tests of the report of `medray doctor`, without torch, Ray or a network."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from medray import cli
from medray.runtime.doctor import Check, examine

ROOT = Path(__file__).parents[2]


def checks() -> dict[str, Check]:
    return {check.name: check for check in examine()}


def test_this_machine_is_not_broken_and_every_check_has_a_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    names = [check["name"] for check in document["checks"]]
    assert {"Python", "required packages", "extra train", "torch", "Ray", "proxies"} <= set(names)
    assert document["is_broken"] is False


def test_neither_torch_nor_ray_is_imported() -> None:
    program = (
        "import sys\nfrom medray.cli import main\nstatus = main(['doctor', '--quiet'])\n"
        "print(*sorted({'torch', 'transformers', 'ray', 'peft'} & set(sys.modules)), status)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert run.stdout.splitlines()[-1] == "0", run.stdout + run.stderr


def test_a_required_package_that_is_missing_is_broken_and_its_command_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version = metadata.version

    def without(package: str) -> str:
        if package in ("peft", "optuna"):
            raise metadata.PackageNotFoundError(package)
        return "1.0" if package == "typer" else version(package)

    monkeypatch.setattr(metadata, "version", without)
    assert cli.main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    (packages,) = (line for line in lines if "required packages" in line)
    assert packages.startswith("broken")
    assert "peft is not installed" in packages
    assert f"{sys.executable} -m pip install 'peft" in packages
    (train,) = (line for line in lines if "extra train" in line)
    assert train.startswith("missing")
    assert "optuna is not installed" in train


def test_a_gpu_that_the_build_of_torch_cannot_use_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB, 570.1'\n")
    command.chmod(0o755)
    torch = tmp_path / "torch"
    torch.mkdir()
    (torch / "__init__.py").write_text("")
    (torch / "version.py").write_text("cuda: Optional[str] = None\n")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    by_name = checks()
    assert by_name["GPUs"].detail == "NVIDIA H200, 143771 MiB, 570.1"
    assert by_name["torch"].status == "warning"
    (torch / "version.py").write_text("cuda: Optional[str] = '13.0'\n")
    assert checks()["torch"].status == "ok"
    assert "CUDA 13.0" in checks()["torch"].detail


def test_a_proxy_that_takes_requests_to_this_machine_is_a_warning_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "all_proxy", "ALL_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://user:secret-word@proxy:3128")
    check = checks()["proxies"]
    assert check.status == "warning"
    assert "secret-word" not in check.render()
    monkeypatch.setenv("NO_PROXY", "localhost, 127.0.0.1")
    assert checks()["proxies"].status == "ok"
