"""Progress of long work as log lines: rows done, rows per second and the time that remains."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Self

log = logging.getLogger(__name__)


@dataclass
class Meter:
    """Counts rows and passes a line to `say` every few seconds."""

    total: int | None  # None if it is not known
    say: Callable[[str], None]
    count: int = 0  # rows done, those of an earlier run included
    unit: str = "rows"
    every_s: float = 5.0
    clock: Callable[[], float] = time.monotonic
    # The time and the count after the first piece; the rate begins there.
    _first: tuple[float, int] | None = field(default=None, init=False)
    _last_s: float = field(default=0.0, init=False)  # the time of the last line

    @classmethod
    def idle(cls, total: int | None = None) -> "Meter":
        """Return a meter that prints nothing."""
        return cls(total, lambda line: None)

    def add(self, rows: int) -> None:
        self.count += rows
        now = self.clock()
        if self._first is None:  # the rate leaves out the time to load a release
            self._first, self._last_s = (now, self.count), now
        elif now - self._last_s >= self.every_s:
            self._last_s = now
            self.say(self.line(now))

    def line(self, now: float) -> str:
        text = f"{self.count} {self.unit}"
        if self.total is not None:
            percent = 100 * self.count // max(self.total, 1)
            text = f"{self.count} of {self.total} {self.unit} ({percent} %)"
        if not (rate := self.rate(now)):
            return text
        text += f", {rate:.1f} {self.unit}/s"
        return (
            text
            if self.total is None
            else f"{text}, {timedelta(seconds=round((self.total - self.count) / rate))} left"
        )

    def rate(self, now: float) -> float:
        if self._first is None or now <= self._first[0]:
            return 0.0
        return (self.count - self._first[1]) / (now - self._first[0])


@contextmanager
def stage(what: str, total: int | None = None) -> Iterator[Meter]:
    """Log the progress of the work in the block, and its duration at the end."""
    start = time.monotonic()
    progress = Meter(total, lambda line: log.info("%s: %s", what, line))
    yield progress
    log.info("%s: %d %s in %.1f s", what, progress.count, progress.unit, time.monotonic() - start)


class Heartbeat:
    """Writes lines, and repeats the current stage after `every_s` seconds without a line."""

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        state: Callable[[], Sequence[str]] = lambda: (),
        every_s: float = 45.0,
    ) -> None:
        self._write, self._state, self._every_s = write, state, every_s
        self._what = ""
        self.start = self._since = self._last_s = time.monotonic()
        self._end = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._what = ""

    def stage(self, what: str) -> None:
        self._what, self._since = what, time.monotonic()
        self.say(what)

    def say(self, line: str) -> None:
        self._last_s = time.monotonic()
        self._write(line)

    @property
    def waiting(self) -> str:
        """Return the current stage and its duration, or an empty text."""
        return f"{self._what}: {time.monotonic() - self._since:.0f} s" if self._what else ""

    def _beat(self) -> None:
        while not self._end.wait(min(1.0, self._every_s)):
            if time.monotonic() - self._last_s >= self._every_s:
                for line in self._state() or filter(None, [self.waiting]):
                    self.say(line)
