"""`pytest --budget SECONDS`: as many tests as fit, in an order that begins with another file each
day; what was left out is named."""

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
        items[:] = rotated(items, int(time.time() // _DAY_S))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if time.monotonic() > self.end:
            self.left_out[_file(item)] += 1
            pytest.skip("left out: the budget is spent")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        names = ", ".join(f"{file} ({number})" for file, number in sorted(self.left_out.items()))
        terminalreporter.write_line(f"left out for want of time: {names or 'nothing'}")


def rotated(items: list[pytest.Item], day: int) -> list[pytest.Item]:
    """Whole files move, so that what their tests share is set up once."""
    files = list(dict.fromkeys(map(_file, items)))
    places = {file: (number - day) % len(files) for number, file in enumerate(files)}
    return sorted(items, key=lambda item: places[_file(item)])


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]
