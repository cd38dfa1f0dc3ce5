import re
from pathlib import Path

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
