"""The desk of a slot, with threads in place of its workers and its study."""

import threading
from typing import Any

import pytest

from medray.errors import TrialError
from medray.training import worker
from medray.training.assignment import Assignment
from medray.training.desk import Desk

SOON, LATE = 0.01, 30.0


def assignment(trial: str) -> Assignment:
    return Assignment(trial, {}, "", "")


def rows(desk: Desk) -> list[dict[str, Any] | None]:
    """Return the rows of all messages up to the end of the trial, None for the end."""
    result: list[dict[str, Any] | None] = []
    while not result or result[-1] is not None:
        message = desk.next_message(LATE)
        assert message is not None
        result.append(message.row)
    return result


def take(desk: Desk, after: int) -> str | None:
    order = desk.take(after, SOON)
    return order.assignment.trial if order and order.assignment else None


def test_workers_that_replace_others_take_the_same_order_until_its_trial_ends() -> None:
    desk = Desk()
    assert desk.take(0, SOON) is None
    desk.assign(assignment("one"), max_failures=1)
    assert take(desk, 0) == "one"
    assert take(desk, 0) == "one"  # of a group with more or fewer workers
    assert take(desk, 1) is None
    desk.finish(1)
    assert take(desk, 0) is None
    assert rows(desk) == [None]
    desk.assign(assignment("two"), max_failures=1)
    assert take(desk, 1) == "two"


def test_a_trial_ends_with_an_error_once_its_workers_are_lost_too_often() -> None:
    desk = Desk()
    for trial in ("one", "two"):  # each trial has its own count
        desk.assign(assignment(trial), max_failures=1)
        desk.lose({"failed": "a worker died"})
        assert take(desk, 0) == trial
        assert desk.next_message(SOON) is None
        desk.lose({"failed": "it died again"})
        assert take(desk, 0) is None
        assert rows(desk) == [{"failed": "it died again"}, None]
    desk.lose({"failed": "between two trials"})
    assert desk.next_message(SOON) is None


def test_workers_that_end_with_a_failed_trial_are_no_loss_of_the_next_one() -> None:
    desk = Desk()
    desk.assign(assignment("one"), max_failures=0)
    desk.finish(1, {"failed": "its loss is not a number"}, ends_workers=True)
    desk.assign(assignment("two"), max_failures=0)
    desk.lose({"failed": "its loss is not a number"})  # Ray tells late
    assert take(desk, 1) == "two"
    desk.lose({"failed": "a worker died"})
    assert rows(desk) == [{"failed": "a worker died"}, None]


def test_a_report_waits_for_the_study_which_goes_on_or_hands_out_another_trial() -> None:
    desk = Desk()
    desk.assign(assignment("one"), max_failures=0)
    answers: list[bool] = []

    def train() -> None:
        for epoch in (1, 2):
            answers.append(desk.report(1, {"epoch": epoch}))
        desk.finish(1)  # of a trial that was stopped: the study does not wait for it

    thread = threading.Thread(target=train)
    thread.start()
    for epoch in (1, 2):
        message = desk.next_message(LATE)
        assert message is not None
        assert message.row == {"epoch": epoch}
    assert answers == [True]
    desk.assign(assignment("two"), max_failures=0)
    thread.join()
    assert answers == [True, False]
    assert desk.next_message(SOON) is None
    assert take(desk, 1) == "two"


def test_workers_train_one_trial_after_another_and_leave_when_they_are_dismissed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trials: list[str] = []

    def run(assignment: Assignment, report: Any, *, node: str) -> None:
        trials.append(assignment.trial)
        report({"epoch": 1})
        if assignment.trial == "broken":
            raise TrialError("it cannot go on")
        report({"epoch": 2})
        trials.append(f"{assignment.trial} to its end")

    monkeypatch.setattr(worker, "run", run)
    desk = Desk()
    thread = threading.Thread(target=lambda: worker.work(desk, node="here"))
    thread.start()
    desk.assign(assignment("broken"), max_failures=2)
    assert rows(desk) == [{"epoch": 1}, {"failed": "it cannot go on"}, None]
    desk.assign(assignment("stopped"), max_failures=2)
    assert desk.next_message(LATE)
    desk.assign(assignment("whole"), max_failures=2)
    assert rows(desk) == [{"epoch": 1}, {"epoch": 2}, None]
    desk.assign(assignment("dismissed"), max_failures=2)
    assert desk.next_message(LATE)
    desk.dismiss()
    thread.join(LATE)
    assert not thread.is_alive()
    assert trials == ["broken", "stopped", "whole", "whole to its end", "dismissed"]
