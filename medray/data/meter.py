"""How far work over many rows is: a line every few seconds, with rows a second and the time that is
left."""

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
    total: int | None  # where it is known
    say: Callable[[str], None]
    done: int = 0  # before this run as well
    unit: str = "rows"
    every_s: float = 5.0
    clock: Callable[[], float] = time.monotonic
    _first: tuple[float, int] | None = field(
        default=None, init=False
    )  # when the first piece was done, and how many rows then were
    _said: float = field(default=0.0, init=False)

    @classmethod
    def idle(cls, total: int | None = None) -> "Meter":
        """That nobody is told of."""
        return cls(total, lambda line: None)

    def add(self, rows: int) -> None:
        self.done += rows
        now = self.clock()
        if self._first is None:  # loading the release is no part of a rate
            self._first, self._said = (now, self.done), now
        elif now - self._said >= self.every_s:
            self._said = now
            self.say(self.line(now))

    def line(self, now: float) -> str:
        shown = f"{self.done} {self.unit}"
        if self.total is not None:
            shown = (
                f"{self.done} of {self.total} {self.unit} ({100 * self.done // max(self.total, 1)} "
                "%)"
            )
        if not (rate := self.rate(now)):
            return shown
        shown += f", {rate:.1f} {self.unit}/s"
        return (
            shown
            if self.total is None
            else f"{shown}, {timedelta(seconds=round((self.total - self.done) / rate))} left"
        )

    def rate(self, now: float) -> float:
        if self._first is None or now <= self._first[0]:
            return 0.0
        return (self.done - self._first[1]) / (now - self._first[0])


@contextmanager
def stage(what: str, total: int | None = None) -> Iterator[Meter]:
    """Work that is worth telling about while it goes, and how long it took."""
    start = time.monotonic()
    progress = Meter(total, lambda line: log.info("%s: %s", what, line))
    yield progress
    log.info("%s: %d %s in %.1f s", what, progress.done, progress.unit, time.monotonic() - start)


class Heartbeat:
    """Passes lines on, names what is waited for, and repeats it where no line came for `every_s`
    seconds."""

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        state: Callable[[], Sequence[str]] = lambda: (),
        every_s: float = 45.0,
    ) -> None:
        self._write, self._state, self._every_s = write, state, every_s
        self._what = ""
        self.start = self._since = self._said = time.monotonic()
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
        self._said = time.monotonic()
        self._write(line)

    @property
    def waiting(self) -> str:
        """What is waited for, and for how long."""
        return f"{self._what}: {time.monotonic() - self._since:.0f} s" if self._what else ""

    def _beat(self) -> None:
        while not self._end.wait(min(1.0, self._every_s)):
            if time.monotonic() - self._said >= self._every_s:
                for line in self._state() or filter(None, [self.waiting]):
                    self.say(line)
