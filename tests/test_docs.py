import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promises
import pytest
import typer

from medray import plugins
from medray.cli.main import app
from medray.config.study import StudyConfig

ROOT = Path(__file__).parent.parent


def test_every_relative_link_in_the_docs_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_configuration_page_names_every_section_of_a_study() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for section in StudyConfig.model_fields:
        assert f"`{section}" in page, section


def test_the_data_page_names_every_format_and_option() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for name in plugins.names("data.formats"):
        for option in plugins.find("data.formats", name).Options.model_fields:
            assert f"`{option}`" in page, f"{name}: {option}"


def test_every_promise_of_the_docs_names_what_shows_it() -> None:
    found = promises.promises()
    assert len(found) > 30
    assert [(promise.text, promise.lacking) for promise in found if promise.lacking] == []


def test_a_promise_that_nothing_shows_would_be_found() -> None:
    page = (
        "<!-- promises -->\n\n- One\n  in two lines. <!-- shown by: tests/test_docs.py::test_of_nothing -->\n- Two.\n"
        "- Three. <!-- shown by: tests/test_docs.py, make test -->\n\n- Not a promise.\n"
    )
    read = list(promises.read(page, "page.md"))
    assert [promise.text for promise in read] == ["- One   in two lines.", "- Two.", "- Three."]
    assert [promise.lacking for promise in read] == [
        "names tests/test_docs.py::test_of_nothing, which is not there",
        "names no test",
        None,
    ]


def commands(page: str) -> Iterator[str]:
    """Every call of `medray` on a page: lines of shell, and what stands between backquotes in a line."""
    for kind, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE):
        if kind in ("bash", "sh", "console"):
            lines = block.replace("\\\n", " ").splitlines()
            yield from (found[1] for line in lines if (found := re.match(r"(?:\$ |[A-Z_]+=\S+ )*(medray .*)", line.strip())))
    outside = re.sub(r"^ *```.*?^ *```", "", page, flags=re.DOTALL | re.MULTILINE)
    yield from (span for span in re.findall(r"`([^`\n]+)`", outside) if span.startswith("medray "))


def wrong(call: str) -> str | None:
    """What the command line would refuse: a command or an option that is not there. Placeholders stand for values."""
    command: Any = typer.main.get_command(app)
    words = shlex.split(re.split(r"\s[|&;>]", call)[0], comments=True)[1:]
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return f"{call}: there is no command {words[0]!r}"
        command = command.commands[words.pop(0)]
    known = {"--help", *(name for parameter in command.params for name in parameter.opts + parameter.secondary_opts)}
    unknown = [word.partition("=")[0] for word in words if word.startswith("-") and word.partition("=")[0] not in known]
    return f"{call}: has no option {unknown[0]}" if unknown else None


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_docs_is_one_that_medray_has(page: Path) -> None:
    assert [refused for call in commands(page.read_text(encoding="utf-8")) if (refused := wrong(call))] == []


def test_a_command_that_does_not_exist_would_be_found() -> None:
    page = (
        "Say `medray data FOLDER`, or `medray study --resume`:\n\n```bash\nRAY_ADDRESS=x medray study S.yaml \\\n  --resum | tee log\n```\n"
    )
    assert [wrong(call) for call in commands(page)] == [
        "medray study S.yaml    --resum | tee log: has no option --resum",
        "medray data FOLDER: there is no command 'FOLDER'",
        None,
    ]
    assert sum(len(list(commands(page.read_text(encoding="utf-8")))) for page in PAGES) > 80
