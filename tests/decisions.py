"""Records of decisions in docs/decisions: `python tests/decisions.py` writes their index."""

import re
import sys
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parents[1] / "docs" / "decisions"
INDEX = FOLDER / "README.md"
INTRO = """# Decisions

Each record holds one decision that binds: its context, the decision, and what was rejected. A
record has at most 25 lines. A decision that no longer holds says so in its status and names the
record that replaced it. Measurements are in the [lab notes](../lab-notes.md).
`python tests/decisions.py` writes this index.

"""
FORM = re.compile(
    r"# (?P<number>\d{4}): (?P<title>.+)\n\nStatus: (?P<status>(?:accepted|replaced by \d{4}),"
    r" \d{4}-\d\d-\d\d)\n\n\*\*Context\.\*\* .+\n\n\*\*Decision\.\*\* .+"
    r"\n\n\*\*Rejected\.\*\* .+\n\Z",
    re.DOTALL,
)


class Record(NamedTuple):
    path: Path
    number: int
    title: str
    status: str
    num_lines: int


def records() -> list[Record]:
    """Read all records, and raise ValueError for one that does not have the form."""
    entries = []
    for path in sorted(FOLDER.glob("[0-9]*.md")):
        text = path.read_text(encoding="utf-8")
        match = FORM.match(text)
        if match is None:
            raise ValueError(
                f"{path.name}: needs a title `# NNNN: ...`, a status with its date, and the "
                "paragraphs Context, Decision and Rejected"
            )
        number, title, status = match.group("number", "title", "status")
        entries.append(Record(path, int(number), title, status, len(text.splitlines())))
    return entries


def index() -> str:
    rows = [f"- [{entry.number:04d}: {entry.title}]({entry.path.name})" for entry in records()]
    return INTRO + "\n".join(rows) + "\n"


def main() -> int:
    INDEX.write_text(index(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
