import blocks
import readme_images


def test_badges_say_what_pyproject_says() -> None:
    for name, text in readme_images.badges().items():
        assert (readme_images.IMAGES / name).read_text(encoding="utf-8") == text, (
            "python tests/readme_images.py writes it"
        )
    alternatives = "Python 3.11, 3.12 and 3.13", "License: Apache-2.0"
    page = blocks.README.read_text(encoding="utf-8")
    assert all(f"![{text}](docs/images/" in page for text in alternatives)
    assert "3.11 | 3.12 | 3.13" in readme_images.badges()["python.svg"]


def test_readme_shows_output_of_its_first_block() -> None:
    entries = blocks.blocks(blocks.README)
    assert len(entries) >= 2
    assert {block.mark for block in entries} == {"ci: run", "needs: data of yours"}
    assert entries[0].excerpt


def test_lines_that_are_shown_are_found_in_order_whatever_their_numbers() -> None:
    output = ["starting", "winner: model-002, f1 0.8125 on 144 rows", "  cancer@1: cancer"]
    assert (
        blocks.first_difference("winner: model-000, f1 0.9 on …\n\ncancer@1: cancer\n", output)
        is None
    )
    assert blocks.first_difference("cancer@1: no_cancer\n", output) == "cancer@1: no_cancer"
    assert blocks.first_difference("cancer@1: cancer\nstarting\n", output) == "starting"


def test_a_block_fails_by_its_exit_status_or_by_a_line_that_its_output_lacks() -> None:
    def failure(code: str, excerpt: str = "") -> str | None:
        return blocks.failure(blocks.Block(blocks.README, "ci: run", "bash", code, excerpt))

    assert failure("echo one 1; echo two 2", "two 3\n") is None
    assert failure("false | true") == "exit status 1"
    assert failure("echo two", "three\n") == (
        "README.md shows a line that the output does not have: three"
    )
