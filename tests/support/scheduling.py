"""Schedules tests on two processes: files that need Ray run first, studies in one process and
services in the other.

The files of a process share a cluster and take turns on it. xdist's own groups (`--dist loadgroup`)
change a name that pytest 9.2 does not allow to change (pytest-xdist 3.8)."""

from functools import cache
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).parents[2]
CORE = ("bert", "llama", "opt")  # families


class RayTogether(LoadFileScheduling):  # type: ignore[misc]  # xdist is untyped
    def _split_scope(self, nodeid: str) -> str:
        if needs_ray(nodeid):
            return "studies on Ray" if nodeid.startswith("tests/study/") else "services on Ray"
        return super()._split_scope(nodeid)


def order(items: list[pytest.Item]) -> None:
    """Put tests that need Ray first, since they take longest."""
    items.sort(key=lambda item: not needs_ray(item.nodeid))


def mark_breadth(items: list[pytest.Item]) -> None:
    """Mark tests of most model families as slow: `make test` keeps an encoder, a decoder and a
    model with tied weights."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if (
            callspec
            and isinstance(family := callspec.params.get("family"), str)
            and family not in CORE
        ):
            item.add_marker(pytest.mark.slow)


def mark_attacks(items: list[pytest.Item]) -> None:
    """Mark the tests of tests/attacks, which are a tier of their own."""
    for item in items:
        if item.nodeid.startswith("tests/attacks/"):
            item.add_marker(pytest.mark.attack)


def needs_ray(nodeid: str) -> bool:
    return _marks_ray(nodeid.partition("::")[0])


@cache
def _marks_ray(file: str) -> bool:
    return "pytest.mark.ray" in (ROOT / file).read_text(encoding="utf-8")
