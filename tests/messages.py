"""Texts of medray's source, so that a page that quotes a message can be compared with them."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
GAP = "…"  # stands for a value in a quoted message


@cache
def texts() -> tuple[str, ...]:
    """Return every text of the package and its shell scripts; a value in it is a gap."""
    python = [
        text_of(node)
        for path in sorted((ROOT / "medray").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.JoinedStr | ast.Constant)
    ]
    return tuple(" ".join(text.split()) for text in python if text)


def text_of(node: ast.JoinedStr | ast.Constant) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values
    )


def exists(message: str) -> bool:
    """Whether one text holds the parts of a quoted message in order; a gap is any value."""
    parts = [re.escape(part.strip()) for part in message.split(GAP) if part.strip()]
    pattern = re.compile(".*".join(parts), re.DOTALL)
    return any(pattern.search(text) for text in texts())
