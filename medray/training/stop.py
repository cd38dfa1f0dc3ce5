"""A study requests that its trials store their state, by two files in each trial's folder.

The study writes the request, which a trial reads as soon as it trains. The trial writes whether it
has a step to wait for. Files on the shared storage reach every node. They exist from the start, are
written in place and opened again for each check, which shows their content on NFS too."""

import time
from contextlib import suppress
from pathlib import Path

_REQUEST = "stop"  # written by the study
_TRAINS = "training"  # written by the trial
CHECK_INTERVAL_S = 0.2  # between checks of a trial


class StopFiles:
    """The two files as the first worker of a trial uses them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._last_check = 0.0

    def open(self) -> None:
        """Write that the trial trains: a study waits for the current step from here on."""
        self._last_check = 0.0  # the next step finds an earlier request
        self.folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # with a full disk, no state can be stored either
            (self.folder / _TRAINS).write_text("yes\n")

    def close(self) -> None:
        """Write that the trial has no state to store, or has stored it."""
        (self.folder / _TRAINS).unlink(missing_ok=True)

    def is_requested(self) -> bool:
        if time.monotonic() < self._last_check + CHECK_INTERVAL_S:
            return False
        self._last_check = time.monotonic()
        return _is_written(self.folder / _REQUEST)


def prepare(folder: Path) -> None:
    """Reset both files before a trial starts. The study calls it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _TRAINS).unlink(missing_ok=True)
    (folder / _REQUEST).write_text("")


def request(folder: Path) -> None:
    with suppress(OSError):
        (folder / _REQUEST).write_text("store the state and wait\n")


def is_pending(folder: Path) -> bool:
    """Return whether a trial trains that has not stored its state since the request.

    A trial that loads or evaluates has nothing to store."""
    return _is_written(folder / _REQUEST) and _is_written(folder / _TRAINS)


def remove(folder: Path) -> None:
    """Remove both files of a trial that has ended."""
    for name in (_REQUEST, _TRAINS):
        (folder / name).unlink(missing_ok=True)


def _is_written(path: Path) -> bool:
    try:
        return bool(path.read_text())
    except OSError:
        return False
