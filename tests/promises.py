"""`make promises`: what README and docs promise, and the test or command that shows it. Exit status
1 where a promise has none.

A list, table or paragraph below the line `<!-- promises -->` holds one promise in each item or row,
and in each promise stands, unseen by readers, `<!-- shown by: tests/test_x.py::test_y, python
jobs/bench/z.py -->`."""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARK, SHOWN_BY = "<!-- promises -->", re.compile(r"<!-- shown by: (.*?) -->")


@dataclass(frozen=True)
class Promise:
    page: str
    text: str
    shown_by: tuple[str, ...]

    @property
    def lacking(self) -> str | None:
        """Why nothing shows it."""
        if not self.shown_by:
            return "names no test"
        missing = [name for name in self.shown_by if not exists(name)]
        return f"names {', '.join(missing)}, which is not there" if missing else None


def promises() -> list[Promise]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        promise for page in pages for promise in read(page.read_text(encoding="utf-8"), page.name)
    ]


def read(text: str, page: str) -> Iterator[Promise]:
    for block in text.split(f"{MARK}\n")[1:]:
        for part in parts(block.lstrip("\n").split("\n\n")[0]):
            shown_by = [
                name.strip() for entries in SHOWN_BY.findall(part) for name in entries.split(",")
            ]
            yield Promise(page, SHOWN_BY.sub("", part).strip(), tuple(shown_by))


def parts(block: str) -> list[str]:
    """The rows of a table below its head, or the items of a list with the lines that go on with
    them."""
    lines = block.splitlines()
    if lines and lines[0].startswith("|"):
        return lines[2:]
    return [item.replace("\n", " ") for item in re.split(r"\n(?=- )", block)]


def exists(name: str) -> bool:
    """A file of tests, a test in it, or a command whose script is in the repository."""
    if name.startswith("make "):
        return f"\n{name.split()[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
    file, _, test = name.removeprefix("python ").split(" ")[0].partition("::")
    if not (ROOT / file).is_file():
        return False
    if not test:
        return True
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name == test for node in ast.walk(tree))


def main() -> int:
    entries = promises()
    bare = [promise for promise in entries if promise.lacking]
    for promise in bare:
        print(f"{promise.page}: {promise.lacking}: {promise.text[:160]}")
    print(
        f"{len(entries)} promises, {len(entries) - len(bare)} shown by a test or a command, "
        f"{len(bare)} not"
    )
    return 1 if bare else 0


if __name__ == "__main__":
    sys.exit(main())
