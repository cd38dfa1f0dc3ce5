"""README, docs and docstrings keep to short sentences and a hundred columns."""

from pathlib import Path

import prose
import pytest

# Wide lines are commands, headings and generated lists.
BOUNDS = {"pages": 0, "docstrings": 0, "wide lines": 16}


def paths_of_code() -> list[Path]:
    tops = ("medray", "tests", "jobs", "cluster")
    return [path for top in tops for path in sorted(prose.ROOT.glob(f"{top}/**/*.py"))]


def test_sentences_have_at_most_thirty_words() -> None:
    pages = [item for path in prose.pages(prose.ROOT) for item in prose.of_markdown(path)]
    docstrings = [item for path in paths_of_code() for item in prose.of_code(path)]
    counts = {
        "pages": prose.long_sentences(pages),
        "docstrings": prose.long_sentences(docstrings),
    }
    assert {what: long for what, long in counts.items() if len(long) > BOUNDS[what]} == {}


def test_lines_have_at_most_a_hundred_columns() -> None:
    paths = [*prose.pages(prose.ROOT), *paths_of_code()]
    wide = {str(path): num for path in paths if (num := prose.wide_lines(path))}
    assert sum(wide.values()) <= BOUNDS["wide lines"], wide


@pytest.mark.parametrize(
    ("text", "num_words"),
    [
        ("One two three.", 3),
        ("Run `make test KEEP=1` now.", 3),
        ("See [the guide](docs/x y.md) for 3 rows - more.", 6),
    ],
)
def test_code_and_addresses_count_as_one_word(text: str, num_words: int) -> None:
    assert prose.Sentence(Path("x.md"), text).num_words == num_words


def test_tables_code_and_comments_are_no_sentences(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title\n\nFirst one. Second one.\n\n- an item\n- another\n\n| a | b |\n| - | - |\n\n"
        "```sh\nmake test\n```\n\n<!-- a comment -->\n"
    )
    texts = [sentence.text for sentence in prose.of_markdown(page)]
    assert texts == ["First one.", "Second one.", "- an item", "- another"]
