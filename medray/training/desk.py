"""The desk of a slot hands assignments to the slot's workers, and their reports to the study.

It decides which trial the workers train and whether a trial goes on. It knows neither Ray nor
torch. Workers and study call it from threads of their own, or through an actor."""

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

from medray.training.assignment import Assignment

WAIT_S = 5.0  # of one call: a caller that died meanwhile holds a thread of the desk no longer


@dataclass(frozen=True)
class Order:
    """An assignment with its number at this desk. Without an assignment, the worker is to leave."""

    number: int
    assignment: Assignment | None


@dataclass(frozen=True)
class TrialMessage:
    """A report of the current trial. Without a row, the trial has ended."""

    row: dict[str, Any] | None


class WorkerDesk(Protocol):
    """The desk as its workers see it."""

    def take(self, after: int, wait_s: float) -> Order | None: ...

    def report(self, number: int, row: dict[str, Any]) -> bool: ...

    def finish(
        self, number: int, row: dict[str, Any] | None = None, *, ends_workers: bool = False
    ) -> None: ...


class Desk:
    def __init__(self) -> None:
        self._change = threading.Condition()
        self._number = 0  # of the last assignment
        self._order: Order | None = None  # until its trial ends
        self._is_dismissed = False
        self._messages: deque[TrialMessage] = deque()  # that the study has not read
        self._num_reports = self._num_answers = 0
        self._num_losses = self._max_failures = 0
        self._num_ends = 0  # of workers that end by themselves, and are not lost

    def assign(self, assignment: Assignment, max_failures: int) -> None:
        """Hand out an assignment. The trial before it stops at its report."""
        with self._change:
            self._number += 1
            self._order = Order(self._number, assignment)
            self._messages.clear()
            self._num_losses, self._max_failures = 0, max_failures
            self._change.notify_all()

    def next_message(self, wait_s: float) -> TrialMessage | None:
        """Return the next message, or None if there is none yet. The trial goes on from its last
        one."""
        with self._change:
            if not self._messages:
                self._num_answers = self._num_reports
                self._change.notify_all()
                self._change.wait_for(lambda: self._messages, wait_s)
            return self._messages.popleft() if self._messages else None

    def dismiss(self) -> None:
        """Let the workers leave. A trial stops at its report."""
        with self._change:
            self._is_dismissed, self._order = True, None
            self._change.notify_all()

    def take(self, after: int, wait_s: float) -> Order | None:
        """Return the order after this number, or None if there is none yet.

        Workers that replace others get the order that those had."""
        with self._change:
            self._change.wait_for(lambda: self._is_dismissed or self._is_newer(after), wait_s)
            if self._is_dismissed:
                return Order(after, None)
            return self._order if self._is_newer(after) else None

    def report(self, number: int, row: dict[str, Any]) -> bool:
        """Pass a report on, and return whether the trial goes on once the study knows."""
        with self._change:
            if not self._is_current(number):
                return False
            self._num_reports += 1
            report = self._num_reports
            self._add(TrialMessage(row))
            self._change.wait_for(
                lambda: self._num_answers >= report or not self._is_current(number)
            )
            return self._is_current(number)

    def finish(
        self, number: int, row: dict[str, Any] | None = None, *, ends_workers: bool = False
    ) -> None:
        """End the trial of an order, with the report of its failure where there is one. Workers
        that end with it are not lost."""
        with self._change:
            if not self._is_current(number):
                return
            self._order = None
            self._num_ends += ends_workers
            if row is not None:
                self._add(TrialMessage(row))
            self._add(TrialMessage(None))

    def lose(self, row: dict[str, Any]) -> None:
        """Count the loss of the trial's workers, whose successors take the same order. After more
        than `max_failures` losses, the trial ends with this row."""
        with self._change:
            if self._num_ends:  # the trial is over, and the next one may have begun
                self._num_ends -= 1
                return
            self._num_losses += 1
            if self._num_losses > self._max_failures:
                self.finish(self._number, row)

    def _is_current(self, number: int) -> bool:
        return self._order is not None and self._order.number == number

    def _is_newer(self, number: int) -> bool:
        return self._order is not None and self._order.number > number

    def _add(self, message: TrialMessage) -> None:
        self._messages.append(message)
        self._change.notify_all()
