"""Options of all commands have one spelling per meaning."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from medray import cli
from medray.cli.main import app


def commands(group: Any, *path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *path, name)
        else:
            yield " ".join((*path, name)), command


def test_serve_without_a_reference_lists_the_releases_that_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", "--storage-path", str(tmp_path)]) == 2
    assert "name a release, such as cancer@best; " in capsys.readouterr().err
    for record in ("notes/1.json", "notes/aliases/best/1.json", "triage/1.json"):
        path = tmp_path / "releases" / record
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert cli.main(["serve", "--storage-path", str(tmp_path)]) == 2
    message = f"name a release, such as notes@best; {tmp_path} has notes@best, triage@1"
    assert capsys.readouterr().err == f"medray: {message}\n"


def test_an_option_takes_a_value_of_one_kind_in_every_command() -> None:
    kinds: dict[str, set[str]] = defaultdict(set)
    for _, command in commands(typer.main.get_command(app)):
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--"):
                    kind = "flag" if getattr(parameter, "is_flag", False) else "value"
                    kinds[option].add(f"{kind}{' again' if parameter.multiple else ''}")
    assert {option: kind for option, kind in kinds.items() if len(kind) > 1} == {}
    assert len(kinds) > 50


@pytest.mark.parametrize(
    ("call", "option"),
    [
        ("init rows.csv --label x", "--label-column"),
        ("init rows.csv --text x", "--text-column"),
        ("plan study.yaml --limit-gpu-hours 3", "--max-gpu-hours"),
        ("report runs/cancer --out page.html", "--output"),
        ("serve cancer@best --tokens file", "--tokens-file"),
        ("submit study.yaml --upload-limit-mb 3", "--max-upload-mb"),
    ],
)
def test_a_near_spelling_is_a_usage_error_that_names_the_option(
    call: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(call.split()) == 2
    assert option in capsys.readouterr().err
