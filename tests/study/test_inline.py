"""A trial in the process that ran another before."""

import gc
import weakref
from typing import Any

import pytest

from medray.errors import TrialError
from medray.study import trial_actor as trials
from medray.training import worker
from medray.training.assignment import Assignment


class Cycle:
    """An object that only the garbage collector frees."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize("fails", [False, True])
def test_a_trial_leaves_no_memory_to_the_next_one(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import tune

    left: list[weakref.ref[Cycle]] = []
    reports: list[dict[str, Any]] = []

    def run(*_: Any, **__: Any) -> None:
        left.append(weakref.ref(Cycle()))
        if fails:
            raise TrialError("it cannot go on")

    monkeypatch.setattr(worker, "run", run)
    monkeypatch.setattr(tune, "report", reports.append)
    gc.disable()
    try:
        trials.inline({"assignment": Assignment("one", {}, "", "").as_dict()})
        assert [reference() for reference in left] == [None]
    finally:
        gc.enable()
    assert reports == ([{"failed": "it cannot go on"}] if fails else [])
