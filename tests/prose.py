"""Sentences of README, docs and docstrings: `python tests/prose.py [FOLDER]` prints their lengths
per part, and with `--list` each sentence of more than 30 words."""

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LONGEST = 30  # words
COLUMNS = 100
# Pages of Markdown without tables, code, headings and HTML.
_CODE = re.compile(r"^(```|~~~).*?^\1\s*$", re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_END = re.compile(r"(?<=[.!?:;])[\"')*_]*\s+(?=[\"'(*_`\[]*[A-Z0-9`\[])")


class Sentence(NamedTuple):
    path: Path
    text: str

    @property
    def num_words(self) -> int:
        # A word has a letter; code in backticks and a link's address are one word.
        text = re.sub(r"`[^`]*`", "code", self.text)
        text = re.sub(r"\]\([^)]*\)", "]", text)
        return sum(any(map(str.isalpha, word)) for word in text.split())


def of_markdown(path: Path) -> Iterator[Sentence]:
    """Yield the sentences of a page's paragraphs and list items."""
    text = _COMMENT.sub("", _CODE.sub("", path.read_text(encoding="utf-8")))
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )|\n(?=#)", text):
        if block.lstrip().startswith(("|", "#", "<", "![", "---")):
            continue
        yield from _sentences(path, block)


def of_code(path: Path) -> Iterator[Sentence]:
    """Yield the sentences of docstrings."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, kinds) and (docstring := ast.get_docstring(node)):
            for paragraph in docstring.split("\n\n"):
                yield from _sentences(path, paragraph)


def _sentences(path: Path, text: str) -> Iterator[Sentence]:
    for sentence in _END.split(" ".join(text.split())):
        if sentence:
            yield Sentence(path, sentence)


def pages(root: Path) -> list[Path]:
    """Return README, docs and the other pages of the top; records of what was measured are left
    out."""
    paths = [*root.glob("*.md"), *root.glob("docs/**/*.md")]
    return sorted(path for path in paths if path.name not in ("lab-notes.md", "DECISIONS.md"))


def long_sentences(sentences: Sequence[Sentence]) -> list[Sentence]:
    return [sentence for sentence in sentences if sentence.num_words > LONGEST]


def wide_lines(path: Path) -> int:
    """Return how many lines have too many columns. Tables, links and output in code blocks cannot
    be broken."""
    text = path.read_text(encoding="utf-8")
    lines = (_CODE.sub("", text) if path.suffix == ".md" else text).splitlines()
    return sum(
        len(line) > COLUMNS
        and not line.lstrip().startswith(("|", "[", "!", "<", "- ["))
        and not re.search(r"# (type: ignore|noqa)", line)
        and " " in line.strip().lstrip("-*# ")[: COLUMNS - 1]
        for line in lines
    )


def main(arguments: Sequence[str]) -> int:
    roots = [Path(argument).resolve() for argument in arguments if argument != "--list"]
    root = roots[0] if roots else ROOT
    parts: dict[str, list[Sentence]] = {
        "README, docs": [item for path in pages(root) for item in of_markdown(path)],
        "docstrings of medray": [
            item for path in sorted(root.glob("medray/**/*.py")) for item in of_code(path)
        ],
        "docstrings of tests and jobs": [
            item
            for top in ("tests", "jobs", "cluster")
            for path in sorted(root.glob(f"{top}/**/*.py"))
            for item in of_code(path)
        ],
    }
    for part, sentences in parts.items():
        words = sum(sentence.num_words for sentence in sentences)
        print(
            f"{part}: {len(sentences)} sentences, {words / max(len(sentences), 1):.1f} words on "
            f"average, {len(long_sentences(sentences))} of more than {LONGEST}"
        )
        if "--list" in arguments:
            for sentence in long_sentences(sentences):
                print(f"  {sentence.path.relative_to(root)}: {sentence.text}")
    code = [
        path
        for top in ("medray", "tests", "jobs", "cluster")
        for path in root.glob(f"{top}/**/*.py")
    ]
    print(f"lines over {COLUMNS} columns: {sum(map(wide_lines, code))} of code", end=", ")
    print(f"{sum(map(wide_lines, pages(root)))} of pages")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
