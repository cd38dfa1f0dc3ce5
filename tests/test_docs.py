import re
from pathlib import Path

import promises

from medray import plugins
from medray.config import StudyConfig

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
