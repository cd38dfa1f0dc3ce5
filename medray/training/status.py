"""The progress of a trial in a small file beside its log. The trial writes it, the study's process
reads it; neither torch nor Ray is imported."""

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

TRAINING = "training"
_FILE = "status.json"
WRITE_INTERVAL_S = 2.0  # because a step may take a millisecond, and the folder may be on NFS


@dataclass(frozen=True)
class Status:
    stage: str  # "training", or the work before it
    epoch: int = 0  # counted from 1; 0 before the first step
    step: int = 0
    num_steps: int = 0
    loss: float | None = None  # of the last step
    tokens_per_s: float | None = None
    left_s: float | None = None  # until the end of the trial, by the speed of this process


def read(folder: Path) -> Status | None:
    """Return the last status of a trial, or None before its first one."""
    try:
        return Status(**json.loads((folder / _FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


class StatusFile:
    """The status of a trial, written by its first worker; the others pass no folder.

    Writing never fails: checkpoints report a full disk."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.status = Status("")
        self._last_write = self._start = 0.0
        self._first_step = 0

    def stage(self, name: str) -> None:
        self._write(replace(self.status, stage=name))

    def step(
        self, *, epoch: int, step: int, num_steps: int, loss: float, tokens_per_s: float
    ) -> None:
        """Count a step, and write the status at most every two seconds."""
        now = time.monotonic()
        if not self._start:
            self._start, self._first_step = now, step
        is_due = self.status.stage != TRAINING or now - self._last_write >= WRITE_INTERVAL_S
        steps_here = step - self._first_step
        left_s = (now - self._start) / steps_here * (num_steps - step) if steps_here else None
        self.status = Status(TRAINING, epoch, step, num_steps, loss, tokens_per_s, left_s)
        if is_due:
            self._write(self.status)

    def clear(self) -> None:
        if self.folder:
            with suppress(OSError):
                (self.folder / _FILE).unlink(missing_ok=True)

    def _write(self, status: Status) -> None:
        self.status, self._last_write = status, time.monotonic()
        if self.folder is None:
            return
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            new_file = self.folder / f".{_FILE}"
            new_file.write_text(json.dumps(asdict(status)), encoding="utf-8")
            os.replace(new_file, self.folder / _FILE)
