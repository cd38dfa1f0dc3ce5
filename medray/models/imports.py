"""Speeds imports up: hides packages that are not needed, and pauses garbage collection."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hide_packages(*names: str) -> Iterator[None]:
    """Make packages that are not imported yet seem not installed inside a block."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None makes Python's import raise ImportError
    try:
        yield
    finally:
        for name in absent:
            if sys.modules.get(name, ...) is None:  # otherwise another thread imported it
                del sys.modules[name]


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause garbage collection inside a block.

    It would walk over a million new objects again and again, a quarter of an import's time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
