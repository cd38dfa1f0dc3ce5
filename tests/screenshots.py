"""`python tests/screenshots.py`: write the pictures of the report and the page in docs/images.

They come from docs/report-example.html and from the page over a service of the tests, in the
system's Chromium."""

import sys
from pathlib import Path

from playwright.sync_api import Browser
from support import fake_service
from support.browser import open_tab, start

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"


def report(browser: Browser) -> None:
    url = (ROOT / "docs" / "report-example.html").as_uri()
    tab = open_tab(browser, url, width=1000, height=620)
    tab.page.screenshot(path=IMAGES / "report.png")


def page(browser: Browser) -> None:
    service = fake_service.Service("cancer@best")
    with fake_service.running(fake_service.api(service)) as url:
        tab = open_tab(browser, f"{url}#cancer@best", width=900, height=760)
        tab.until("!document.getElementById('card').hidden")
        tab.page.fill("#field-text", "Histology showed an infiltrating carcinoma.")
        tab.page.click("#send")
        tab.until("!document.getElementById('answer').hidden")
        tab.page.screenshot(path=IMAGES / "page.png")


def main() -> int:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with start() as browser:
        for picture in (report, page):
            picture(browser)
            print(IMAGES / f"{picture.__name__}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
