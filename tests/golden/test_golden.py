"""Formats on disk and bodies on the wire are as they were stored: a difference is text, and is
accepted by the command that renews them."""

import difflib

import pytest
from golden.make import COMMAND, FILES, documents

MOST_LINES = 60


@pytest.fixture(scope="module")
def current() -> dict[str, str]:
    return documents()


def file_names() -> list[str]:
    return sorted(path.name for path in FILES.iterdir())


def difference(name: str, old: str, new: str) -> str:
    """A unified diff that fits a screen; nothing where the two are equal."""
    lines = list(
        difflib.unified_diff(
            old.splitlines(),
            new.splitlines(),
            f"stored/{name}",
            f"current/{name}",
            lineterm="",
            n=2,
        )
    )
    text = [line if len(line) <= 200 else f"{line[:200]}…" for line in lines[:MOST_LINES]]
    return "\n".join(
        [
            *text,
            *([f"… and {len(lines) - MOST_LINES} more lines"] if len(lines) > MOST_LINES else []),
        ]
    )


def test_each_golden_file_is_made_and_each_document_is_stored(current: dict[str, str]) -> None:
    assert file_names() == sorted(current), f"`{COMMAND}` renews them"


@pytest.mark.parametrize("name", file_names())
def test_what_is_written_and_answered_is_as_it_was_stored(
    name: str, current: dict[str, str]
) -> None:
    changes = difference(name, (FILES / name).read_text(encoding="utf-8"), current.get(name, ""))
    assert not changes, (
        f"{changes}\n\n{name} has changed. If that is wanted: `{COMMAND}`, and commit what it "
        "writes."
    )
