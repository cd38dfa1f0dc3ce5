"""Tests of the output and exit status of commands: --json, --quiet and --version."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from support import tiny

from medray import __version__, cli
from medray.cli.main import app
from medray.config.load import dump_settings
from medray.registry.registry import Registry

SAMPLES = Path(__file__).parents[2] / "jobs" / "samples"
# These commands serve, chat, print a log unchanged, or always print JSON.
WITHOUT_JSON = {"serve", "chat", "jobs logs", "schema"}
WITHOUT_QUIET = {"chat", "jobs logs", "schema"}


def commands(group: Any, *path: str) -> Iterator[tuple[str, set[str]]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *path, name)
        else:
            options = {option for parameter in command.params for option in parameter.opts}
            yield " ".join((*path, name)), options


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "study.yaml"
    path.write_text(dump_settings(tiny.study(tmp_path)))
    return path


def test_every_command_that_reports_takes_json_and_quiet() -> None:
    options = dict(commands(typer.main.get_command(app)))
    assert {name for name in options if "--json" not in options[name]} == WITHOUT_JSON
    assert {name for name in options if "--quiet" not in options[name]} == WITHOUT_QUIET


@pytest.mark.parametrize(
    "call",
    [
        f"init {SAMPLES}/notes.csv --positive cancer --output first.yaml",
        "study study.yaml --dry-run",
        "data audit study.yaml",
        "data convert name=jsonl,path=rows.jsonl,id=id "
        "name=delimited,path=new.psv,id=ID,text=[Text],label=Label",
        "plan study.yaml",
        "publish CHECKPOINT other --alias best",
        "releases",
        "verify cancer@1",
        "verify --repair",
        "export cancer@1 exported",
        "promote cancer@1 best --no-wait",
        "evaluate cancer@1 study.yaml --split validation",
        "review cancer@1 study.yaml",
        "predict cancer@1 --input rows.jsonl --output predictions --text-column text",
    ],
)
def test_json_is_one_document_on_stdout_and_quiet_leaves_the_result(
    call: str, study: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tiny.checkpoint()
    Registry("runs").publish(checkpoint, "cancer")
    words = call.replace("CHECKPOINT", str(checkpoint)).split()
    capfd.readouterr()
    stdout = sys.stdout
    assert cli.main([*words, "--json"]) == 0, capfd.readouterr().err
    document = json.loads(capfd.readouterr().out)
    assert isinstance(document, dict | list)
    assert sys.stdout is stdout


def test_quiet_prints_the_result_without_progress(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Registry("runs").publish(tiny.checkpoint(), "cancer")
    call = ["predict", "cancer@1", "--input", "rows.jsonl", "--text-column", "text"]
    assert cli.main([*call, "--output", "one"]) == 0
    assert capsys.readouterr().out.startswith("starting\n")
    assert cli.main([*call, "--output", "two", "--quiet"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("60 rows: 60 predicted, 0 set aside")
    assert "starting" not in output.out + output.err


def test_an_error_with_json_leaves_stdout_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["leaderboard", "nowhere", "--json"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("medray: nowhere")


@pytest.mark.parametrize(
    ("call", "status", "message"),
    [
        ("releases", 0, ""),
        ("verify none@1", 1, "none"),
        ("verify", 2, "NAME@VERSION is missing"),
        ("verify none@1 --yes", 2, "--yes has no effect without --repair"),
        ("evaluate a study.yaml --split rest", 2, "'rest' is not one of"),
        ("leaderboard runs --format xls", 2, "'xls' is not one of"),
        ("promote a@1 best --no-wait --url http://x", 2, "--url has no effect with --no-wait"),
        ("study study.yaml --retry-failed", 2, "add --resume"),
        ("plan study.yaml --max-hours 0.0000001", 3, "are more than --max-hours"),
    ],
)
def test_a_command_exits_with_the_status_of_the_table(
    call: str, status: int, message: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(call.split()) == status
    assert message in capsys.readouterr().err


def test_a_listing_with_a_file_that_cannot_be_read_is_partly_done(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry("runs")
    registry.publish(tiny.checkpoint(), "cancer")
    registry.publish(tiny.checkpoint(), "tumour")
    (record,) = Path("runs/releases/tumour").glob("*.json")
    record.write_text("{}")
    assert cli.main(["releases", "--json"]) == 4
    listing = json.loads(capsys.readouterr().out)
    assert [version["release"] for version in listing["versions"]] == ["cancer@1"]
    assert len(listing["unreadable"]) == 1


def test_the_installed_command_prints_its_version_and_completes_names() -> None:
    command = str(Path(sys.executable).with_name("medray"))
    version = subprocess.run([command, "--version"], capture_output=True, text=True)
    assert (version.returncode, version.stdout) == (0, f"medray {__version__}\n")
    completion = subprocess.run(
        [command],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "_MEDRAY_COMPLETE": "complete_bash",
            "COMP_WORDS": "medray leader",
            "COMP_CWORD": "1",
        },
    )
    assert completion.stdout.strip() == "leaderboard", completion.stderr
