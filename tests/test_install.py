"""`make` installs with uv, in the configuration of pip, and with pip where uv is missing or
fails."""

import importlib.util
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", ROOT / "cluster" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def calls(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> list[tuple[list[str], Mapping[str, str]]]:
    """Record the commands and their environments without running them. pip is configured with an
    index and folders."""
    commands: list[tuple[list[str], Mapping[str, str]]] = []
    (tmp_path / "wheels").mkdir()
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://index.example.com/simple\ncert = /etc/ssl/own.pem\n"
        "constraint = /etc/caps.txt\nno-index = true\n"
        f"find-links = {tmp_path / 'wheels'} {tmp_path / 'missing'} "
        "https://wheels.example.com\n[install]\ntimeout = 7\n"
    )
    for name in (
        "PIP_CERT",
        "PIP_FIND_LINKS",
        "PIP_DEFAULT_TIMEOUT",
        "PIP_INDEX_URL",
        "UV_INDEX_URL",
        "SSL_CERT_FILE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))

    def call(command: Sequence[str], env: Mapping[str, str] | None = None) -> int:
        commands.append((list(command), env or {}))
        return 0

    monkeypatch.setattr(subprocess, "call", call)
    return commands


@pytest.mark.document(
    "003",
    "one command installs all",
    where="`make setup`",
    how="by uv or pip with pinned versions instead of Pixi",
)
def test_uv_is_told_what_pip_is_configured_with(
    install: ModuleType,
    calls: list[tuple[list[str], Mapping[str, str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(install, "find_uv", lambda: "/bin/uv")
    assert install.main(["-c", "constraints.txt", "torch"]) == 0
    ((command, environment),) = calls
    uv = ["/bin/uv", "pip", "install", "--quiet", "--compile-bytecode", "--python", sys.executable]
    # Its variable for constraints is not read where the command line names one.
    assert command == [
        *uv,
        "--no-index",
        "--constraint",
        "/etc/caps.txt",
        "-c",
        "constraints.txt",
        "torch",
    ]
    assert environment["UV_INDEX_URL"] == "https://index.example.com/simple"
    assert environment["UV_FIND_LINKS"] == f"{tmp_path / 'wheels'},https://wheels.example.com"
    assert (environment["SSL_CERT_FILE"], environment["UV_HTTP_TIMEOUT"]) == (
        "/etc/ssl/own.pem",
        "7",
    )


def test_without_such_settings_uv_is_told_nothing(install: ModuleType) -> None:
    assert (install.uv_settings({}), install.uv_options({"no-index": "false"})) == ({}, [])
    assert install.uv_settings({"default-timeout": "180"}) == {"UV_HTTP_TIMEOUT": "180"}


def test_what_is_set_for_uv_itself_and_a_variable_of_pips_come_before_pips_file(
    install: ModuleType,
    calls: list[tuple[list[str], Mapping[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(install, "find_uv", lambda: "/bin/uv")
    monkeypatch.setenv("UV_INDEX_URL", "https://uv.example.com/simple")
    monkeypatch.setenv("PIP_TIMEOUT", "9")
    install.main(["torch"])
    ((_, environment),) = calls
    assert environment["UV_INDEX_URL"] == "https://uv.example.com/simple"
    assert environment["UV_HTTP_TIMEOUT"] == "9"


def test_several_indexes_are_compared_as_pip_compares_them(install: ModuleType) -> None:
    settings = install.uv_settings(
        {"extra-index-url": "https://a.example.com\nhttps://b.example.com file:///missing/simple"}
    )
    assert settings == {
        "UV_EXTRA_INDEX_URL": "https://a.example.com https://b.example.com",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }


def test_without_uv_and_without_a_way_to_get_it_pip_installs(
    install: ModuleType,
    calls: list[tuple[list[str], Mapping[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(install.shutil, "which", lambda name, path=None: None)
    assert install.main(["torch"]) == 0
    attempt, success = (command[1:] for command, _ in calls)
    assert attempt == ["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "uv"]
    assert success == ["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "torch"]


def test_where_uv_fails_pip_is_tried_and_its_status_counts(
    install: ModuleType,
    calls: list[tuple[list[str], Mapping[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(install, "find_uv", lambda: "/bin/uv")
    monkeypatch.setattr(
        subprocess, "call", lambda command, env=None: 2 if command[0] == "/bin/uv" else 1
    )
    assert install.main(["no-such-package"]) == 1
    assert "uv exited with status 2; trying pip instead" in capsys.readouterr().err
