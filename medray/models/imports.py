"""Imports in less time: without packages that are not needed, and without collecting what nobody
throws away."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """In the block, packages that were not imported before are said not to be installed."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None is what Python's import takes for absent
    try:
        yield
    finally:
        for name in absent:
            if sys.modules.get(name, ...) is None:  # else another thread imported it
                del sys.modules[name]


@contextmanager
def uncollected() -> Iterator[None]:
    """In the block, Python's collector rests: it would walk over a million new objects again and
    again, a quarter of an import's seconds."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
