"""How far a trial is, in a small file beside its log: the trial rewrites it, the study's process
reads it. No torch, no Ray."""

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

TRAINING = "training"
_FILE = "status.json"
_EVERY_S = 2.0  # a step may take a millisecond, and the folder may be on NFS


@dataclass(frozen=True)
class Status:
    stage: str  # "training", or what the trial waits for
    epoch: int = 0  # from 1; 0 before the first step
    step: int = 0
    num_steps: int = 0
    loss: float | None = None  # of the last step
    tokens_per_s: float | None = None
    left_s: float | None = None  # of the whole trial, by the steps that this process took


def read(folder: Path) -> Status | None:
    """What a trial wrote last; None where it has written nothing yet."""
    try:
        return Status(**json.loads((folder / _FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


class StatusFile:
    """What the first worker of a trial writes; the others have no folder. It never fails: a full
    disk is told by checkpoints."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.status = Status("")
        self._written = self._start = 0.0
        self._first_step = 0

    def stage(self, what: str) -> None:
        self._write(replace(self.status, stage=what))

    def step(
        self, *, epoch: int, step: int, num_steps: int, loss: float, tokens_per_s: float
    ) -> None:
        """A step was taken; written where the last writing is some seconds ago."""
        now = time.monotonic()
        if not self._start:
            self._start, self._first_step = now, step
        is_due = self.status.stage != TRAINING or now - self._written >= _EVERY_S
        taken = step - self._first_step
        left_s = (now - self._start) / taken * (num_steps - step) if taken else None
        self.status = Status(TRAINING, epoch, step, num_steps, loss, tokens_per_s, left_s)
        if is_due:
            self._write(self.status)

    def clear(self) -> None:
        if self.folder:
            with suppress(OSError):
                (self.folder / _FILE).unlink(missing_ok=True)

    def _write(self, status: Status) -> None:
        self.status, self._written = status, time.monotonic()
        if self.folder is None:
            return
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            half = self.folder / f".{_FILE}"
            half.write_text(json.dumps(asdict(status)), encoding="utf-8")
            os.replace(half, self.folder / _FILE)
