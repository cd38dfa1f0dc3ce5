"""A trial in the process that ran another before."""

import gc
import weakref
from typing import Any

import pytest

from medray.errors import TrialError
from medray.training import worker
from medray.training.assignment import Assignment
from medray.training.desk import Desk


class Cycle:
    """An object that only the garbage collector frees."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize("fails", [False, True])
def test_a_trial_leaves_no_memory_to_the_next_one(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk()
    left: list[weakref.ref[Cycle]] = []

    def run(*_: Any, **__: Any) -> None:
        left.append(weakref.ref(Cycle()))
        desk.dismiss()
        if fails:
            raise TrialError("it cannot go on")

    monkeypatch.setattr(worker, "run", run)
    desk.assign(Assignment("one", {}, "", ""), 0)
    gc.disable()
    try:
        worker.work(desk, node="here")
        assert [reference() for reference in left] == [None]
    finally:
        gc.enable()
