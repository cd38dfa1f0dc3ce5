"""How far a run over a library is: a line every few seconds, with rows a second and the time that is left."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta


@dataclass
class Progress:
    total: int
    say: Callable[[str], None]
    done: int = 0  # before this run as well
    every_s: float = 5.0
    clock: Callable[[], float] = time.monotonic
    _first: tuple[float, int] | None = field(default=None, init=False)  # when the first piece was done, and how many rows then were
    _said: float = field(default=0.0, init=False)

    def add(self, rows: int) -> None:
        self.done += rows
        now = self.clock()
        if self._first is None:  # loading the release is no part of a rate
            self._first, self._said = (now, self.done), now
        elif now - self._said >= self.every_s:
            self._said = now
            self.say(self.line(now))

    def line(self, now: float) -> str:
        shown = f"{self.done} of {self.total} rows ({100 * self.done // max(self.total, 1)} %)"
        if not (rate := self.rate(now)):
            return shown
        return f"{shown}, {rate:.1f} rows/s, {timedelta(seconds=round((self.total - self.done) / rate))} left"

    def rate(self, now: float) -> float:
        if self._first is None or now <= self._first[0]:
            return 0.0
        return (self.done - self._first[1]) / (now - self._first[0])
