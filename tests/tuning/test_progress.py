"""What a search says of how it goes."""

import io

import pytest
from rich.console import Console

from medray.records import TrialRecord
from medray.tuning import progress as shown
from medray.tuning.progress import Progress


def record(trial: str, status: str = "running") -> TrialRecord:
    return TrialRecord.model_construct(trial=trial, base_model="tiny", status=status, error=None)


ROW = {"epoch": 1, "step": 5, "train_loss": 0.5, "validation/f1": 0.7, "tokens_per_s": 100.0}


def test_what_is_left_shrinks_while_a_trial_runs_and_counts_those_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(shown.time, "monotonic", lambda: now)
    progress = Progress("f1", Console(file=io.StringIO()))
    progress.planned(4)
    progress.begun(record("looked-up"))
    progress.ended(record("looked-up", "finished"))  # of an earlier run: it says nothing about how long one takes
    assert progress.eta_s is None
    progress.begun(record("one"))
    now = 100.0
    progress.told(record("one"), ROW)
    progress.ended(record("one", "finished"))
    progress.begun(record("two"))
    assert progress.eta_s == 200
    now = 140.0
    assert progress.eta_s == 160
    progress.begun(record("three"))
    assert progress.eta_s == (60 + 100) / 2
    now = 300.0
    assert progress.eta_s == 0


def test_trials_that_ended_before_a_resume_count_as_ended_and_not_as_waiting() -> None:
    progress = Progress("f1", Console(file=io.StringIO()), 10)
    progress.planned(12)
    progress.begun(record("eleven"))
    progress.told(record("eleven"), ROW)
    progress.begun(record("twelve"))
    progress.ended(record("eleven", "finished"))
    assert "11/12 trials ended" in progress._summary()
    assert progress.eta_s is not None
    assert progress.eta_s < 1  # nobody waits
