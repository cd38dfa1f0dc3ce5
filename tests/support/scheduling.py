"""Tests side by side in two processes: those of files that need Ray begin, studies in the one and
services in the other.

In each they take turns on a cluster that they share. xdist's own groups (`--dist loadgroup`) change
a name that pytest 9.2 does not let them change (pytest-xdist 3.8)."""

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
    """They take longest, so they begin."""
    items.sort(key=lambda item: not needs_ray(item.nodeid))


def mark_breadth(items: list[pytest.Item]) -> None:
    """Of tests that are run for each model family, an encoder, a decoder and one with tied weights
    stay in `make test`."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if (
            callspec
            and isinstance(family := callspec.params.get("family"), str)
            and family not in CORE
        ):
            item.add_marker(pytest.mark.slow)


def mark_attacks(items: list[pytest.Item]) -> None:
    """Tests of tests/attacks are a tier of their own."""
    for item in items:
        if item.nodeid.startswith("tests/attacks/"):
            item.add_marker(pytest.mark.attack)


def needs_ray(nodeid: str) -> bool:
    return _marks_ray(nodeid.partition("::")[0])


@cache
def _marks_ray(file: str) -> bool:
    return "pytest.mark.ray" in (ROOT / file).read_text(encoding="utf-8")
