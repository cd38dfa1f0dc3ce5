"""The report as a browser shows it. Needs a Chromium on the PATH: `apt-get install chromium`."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser
from support import run_files
from support.browser import open_tab

from medray.reports import html_report
from medray.reports.study_data import gather

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    run = run_files.run(folder / "made", histories=run_files.trials(num_failed=1))
    return html_report.write(html_report.compose(gather(run)), folder / "report.html")


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (375, False), (1000, True)])
def test_a_report_asks_for_nothing_complains_about_nothing_and_fits(
    chromium: Browser, report: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    tab = open_tab(chromium, report.as_uri(), width=width, dark=dark)
    assert tab.requests == [report.as_uri()]
    assert tab.complaints == []
    assert tab.value("document.documentElement.scrollWidth") == width
    hidden = (
        "[...document.querySelectorAll('main svg')].filter(held => held.getClientRects().length && "
        "held.getBoundingClientRect().width < 8).length"
    )
    assert tab.value(hidden) == 0
    background = tab.value("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")


def test_a_report_that_loads_something_fails_the_check(
    chromium: Browser, report: Path, tmp_path: Path
) -> None:
    """The test above can fail: a script and an image are refused by the page's own policy, and that
    is a complaint."""
    page_with_error = tmp_path / "spoiled.html"
    page_with_error.write_text(
        report.read_text().replace(
            "</main>", "<script>alert(1)</script><img src='http://127.0.0.1:9/x.png'></main>"
        )
    )
    tab = open_tab(chromium, page_with_error.as_uri())
    assert len(tab.complaints) >= 2
    bare = tmp_path / "bare.html"
    bare.write_text(
        "<link rel='icon' href='http://127.0.0.1:9/favicon.ico'><img "
        "src='http://127.0.0.1:9/x.png'><img src='data:,'>"
    )
    requests = open_tab(chromium, bare.as_uri()).requests
    assert "http://127.0.0.1:9/x.png" in requests
    assert not [url for url in requests if url.startswith("data:")]


def test_paper_shows_what_a_reader_would_have_to_open(chromium: Browser, report: Path) -> None:
    tab = open_tab(chromium, report.as_uri())
    assert tab.value("document.querySelectorAll('details:not([open])').length") > 0
    tab.value("dispatchEvent(new Event('beforeprint')) && true")
    assert tab.value("document.querySelectorAll('details:not([open])').length") == 0
