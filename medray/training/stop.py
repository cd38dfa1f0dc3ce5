"""How a study requests of its trials to store their state: two files in each trial's folder, and
each of them has one writer.

The study writes its request, which a trial that does not train yet finds when it begins to. The
trial writes whether there is a step to wait for. Files on the shared storage reach every node. They
are there from the start, written in place and opened anew for each look, which shows their content
on NFS too."""

import time
from contextlib import suppress
from pathlib import Path

_REQUEST = "stop"  # of the study
_TRAINS = "training"  # of the trial
_EVERY_S = 0.2  # between looks of a trial


class StopFiles:
    """The side of a trial's first worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._looked_at = 0.0

    def open(self) -> None:
        """From here on the trial trains, and a study waits for the step that is under way."""
        self._looked_at = 0.0  # a request that came before is found in the next step
        self.folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # of a full disk nothing can be stored either
            (self.folder / _TRAINS).write_text("yes\n")

    def close(self) -> None:
        """The state is stored, or the trial has none to store."""
        (self.folder / _TRAINS).unlink(missing_ok=True)

    def is_requested(self) -> bool:
        if time.monotonic() < self._looked_at + _EVERY_S:
            return False
        self._looked_at = time.monotonic()
        return _is_written(self.folder / _REQUEST)


def prepare(folder: Path) -> None:
    """The side of the study, before a trial starts: what an earlier process left there is void."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _TRAINS).unlink(missing_ok=True)
    (folder / _REQUEST).write_text("")


def request(folder: Path) -> None:
    with suppress(OSError):
        (folder / _REQUEST).write_text("store the state and wait\n")


def is_pending(folder: Path) -> bool:
    """Whether a trial trains that has not stored its state since the request. One that loads or
    evaluates has nothing to store."""
    return _is_written(folder / _REQUEST) and _is_written(folder / _TRAINS)


def remove(folder: Path) -> None:
    """Once the trial has ended."""
    for name in (_REQUEST, _TRAINS):
        (folder / name).unlink(missing_ok=True)


def _is_written(path: Path) -> bool:
    try:
        return bool(path.read_text())
    except OSError:
        return False
