"""How a study requests of its running trials to store their state: a file in each trial's folder, which the trial empties when it has.

A file on the shared storage reaches every node. It is written in place and opened anew for each look, which shows its content on NFS too.
"""

import time
from contextlib import suppress
from pathlib import Path

_FILE = "stop"
_EVERY_S = 0.2  # between looks of a trial
_REQUEST = "store the state and wait\n"


class StopFile:
    """The side of a trial's first worker. Its file is there while a trial trains, not while it evaluates."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / _FILE
        self._looked_at = 0.0

    def open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.answer()  # a request to an earlier process is void

    def is_requested(self) -> bool:
        if time.monotonic() < self._looked_at + _EVERY_S:
            return False
        self._looked_at = time.monotonic()
        return _is_requested(self.path)

    def answer(self) -> None:
        with suppress(OSError):  # of a full disk nothing can be stored either
            self.path.write_text("")

    def close(self) -> None:
        self.path.unlink(missing_ok=True)


def request(folder: Path) -> None:
    """The side of the study. A trial that does not train has nothing to store."""
    path = folder / _FILE
    with suppress(OSError):
        if path.exists():
            path.write_text(_REQUEST)


def is_pending(folder: Path) -> bool:
    return _is_requested(folder / _FILE)


def _is_requested(path: Path) -> bool:
    try:
        return bool(path.read_text())
    except OSError:
        return False
