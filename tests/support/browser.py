"""The system's Chromium with Playwright: the requests of a page, its console and its content."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@dataclass
class Tab:
    """A page with its requests, except those to data inside the page, and all lines of its
    console."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def add_request(self, event: dict[str, Any]) -> None:
        url: str = event["request"]["url"]
        if not url.startswith("data:"):
            self.requests.append(url)

    def value(self, script: str) -> Any:
        return self.page.evaluate(script)

    def until(self, script: str) -> None:
        """Wait until a script's value is true. Playwright's own wait evaluates inside the page,
        which the page's policy refuses."""
        end = time.monotonic() + 20
        while not self.value(script):
            assert time.monotonic() < end, (
                script,
                self.page.locator("body").inner_text()[:400],
                self.complaints,
            )
            self.page.wait_for_timeout(20)


def open_tab(
    browser: Browser, url: str, *, width: int = 1200, height: int = 800, dark: bool = False
) -> Tab:
    """Load a page with a new profile. The caller closes it, or the browser does at its end."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        is_mobile=width < 500,
        color_scheme="dark" if dark else "light",
        service_workers="block",
    )
    context.set_default_timeout(20_000)
    tab = Tab(context.new_page())
    protocol = context.new_cdp_session(
        tab.page
    )  # Playwright's own event leaves out requests of an icon
    protocol.send("Network.enable")
    protocol.on("Network.requestWillBeSent", tab.add_request)
    tab.page.on("console", lambda message: tab.complaints.append(message.text))
    tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.page.goto(url)
    tab.value("document.fonts.ready.then(() => true)")
    return tab


@contextmanager
def start() -> Iterator[Browser]:
    """Skip the test where there is no Chromium. While it runs, this thread counts as one with an
    event loop."""
    command = next((path for name in NAMES if (path := shutil.which(name))), None)
    if command is None:
        pytest.skip(f"no Chromium on the PATH ({', '.join(NAMES)})")
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=command) as browser,
    ):
        yield browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with start() as browser:
        yield browser
