"""`python tests/screenshots.py [report] [page] [dashboard]`: write these pictures, or all, into
docs/images.

They come from docs/report-example.html, from the page over a service of the tests, and from Ray's
dashboard while a tiny model is served, in the system's Chromium."""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from playwright.sync_api import Browser
from support import fake_service, serve_session
from support.browser import open_tab, start

from medray.registry.registry import Registry
from medray.runtime.cluster import free_port, start_cluster
from medray.serving import app
from medray.serving.schemas import AppOptions

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


def dashboard(browser: Browser) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        token = folder / "token"
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
        registry = Registry(str(folder / "runs"))
        registry.publish(serve_session.publish(folder / "trial"), "cancer")
        registry.point("cancer", "best", 1)
        options = AppOptions(releases=("cancer@best",), storage_path=str(folder / "runs"))
        with (
            start_cluster("single", num_cpus=2) as cluster,
            app.serving(options, host="127.0.0.1", port=free_port()),
        ):
            tab = open_tab(browser, "about:blank", width=1200, height=700)
            tab.page.set_extra_http_headers({"Authorization": f"Bearer {token.read_text()}"})
            tab.page.goto(f"{cluster.dashboard}/#/serve")
            tab.page.get_by_text("cancer@best").first.wait_for(timeout=60_000)
            tab.page.screenshot(path=IMAGES / "dashboard.png")


PICTURES: tuple[Callable[[Browser], None], ...] = (report, page, dashboard)


def main(names: Sequence[str]) -> int:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with start() as browser:
        for picture in PICTURES:
            if not names or picture.__name__ in names:
                picture(browser)
                print(IMAGES / f"{picture.__name__}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
