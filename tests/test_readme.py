import readme
import readme_images


def test_badges_say_what_pyproject_says() -> None:
    for name, text in readme_images.badges().items():
        assert (readme_images.IMAGES / name).read_text(encoding="utf-8") == text, (
            "python tests/readme_images.py writes it"
        )
    alternatives = "Python 3.11, 3.12 and 3.13", "License: Apache-2.0"
    page = (readme.ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"![{text}](docs/images/" in page for text in alternatives)
    assert "3.11 | 3.12 | 3.13" in readme_images.badges()["python.svg"]


def test_readme_shows_output_of_its_first_block() -> None:
    blocks = readme.BLOCK.findall((readme.ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 2
    assert blocks[0][1]


def test_lines_that_are_shown_are_found_in_order_whatever_their_numbers() -> None:
    output = ["starting", "winner: model-002, f1 0.8125 on 144 rows", "  cancer@1: cancer"]
    assert (
        readme.first_difference("winner: model-000, f1 0.9 on …\n\ncancer@1: cancer\n", output)
        is None
    )
    assert readme.first_difference("cancer@1: no_cancer\n", output) == "cancer@1: no_cancer"
    assert readme.first_difference("cancer@1: cancer\nstarting\n", output) == "starting"
