"""`pytest --budget SECONDS` runs as many tests as fit and names the others. Each day begins with
another page of the docs that trains, if there are any, and goes on with another file."""

import time
from collections import Counter
from typing import Any

import pytest

_DAY_S = 86400


class Budget:
    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.left_out: Counter[str] = Counter()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        everything = list(items)
        items[:] = of_day(everything, int(time.time() // _DAY_S))
        self.left_out.update(_file(item) for item in everything if item not in items)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if time.monotonic() > self.end:
            self.left_out[_file(item)] += 1
            pytest.skip("left out: the time budget is used up")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        names = ", ".join(f"{file} ({number})" for file, number in sorted(self.left_out.items()))
        terminalreporter.write_line(f"left out for lack of time: {names or 'nothing'}")


def of_day(items: list[pytest.Item], day: int) -> list[pytest.Item]:
    """Return the tests of a day in their order: one page of the docs that trains, then the rest."""
    pages = [item for item in items if item.get_closest_marker("tutorial")]
    others = [item for item in items if item not in pages]
    today = [pages[day % len(pages)]] if pages else []
    return [*today, *rotate(others, day)]


def rotate(items: list[pytest.Item], day: int) -> list[pytest.Item]:
    """Return the items in the order of a day. Files stay whole, so that their fixtures are set up
    once."""
    files = list(dict.fromkeys(map(_file, items)))
    places = {file: (number - day) % len(files) for number, file in enumerate(files)}
    return sorted(items, key=lambda item: places[_file(item)])


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]
