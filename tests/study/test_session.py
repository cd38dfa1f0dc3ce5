"""A search that is interrupted by a full disk, or by Ray, which ends a process for lack of
memory."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest
from support import tiny
from support.chaos import GRID
from support.watcher import RecordingWatcher

from medray.config.study import StudyConfig
from medray.records import Evaluation
from medray.storage import files
from medray.study.placement import Placement
from medray.study.run import Run
from medray.study.search import Search
from medray.study.session import Session
from medray.training import stop
from medray.training.assignment import DISK_FULL, TrialReport
from medray.training.stop import StopFiles


def open_session(study: StudyConfig, here: Run, place: Path) -> Session:
    return Session(
        study,
        here,
        Search(study, "f1_macro"),
        material=lambda config: place,
        placement=lambda config: Placement("inline", 1, 1, 0, 2),
        watcher=RecordingWatcher(),
    )


FIRST = Evaluation(
    1,
    5,
    0.5,
    {"f1_macro": 0.5},
    is_best=True,
    epochs=1.0,
    is_last=False,
    seconds=1.0,
    tokens_per_s=100.0,
)
REPORT = TrialReport(FIRST, first_step_at=1.0, num_parameters=10, num_trainable=1).as_row()


def test_a_full_disk_halts_the_search_and_its_trials_stay_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny.study(tmp_path, GRID, "search.algorithm=grid")
    here = Run.start(study)

    session = open_session(study, here, tmp_path)
    session.search.start()
    first, second = session.next(), session.next()
    assert first
    assert second
    with session.ending_on_full_disk():
        session.on_trial_report("tiny-bert-000", {DISK_FULL: "runs: No space left on device"})
    assert str(session.full) == "runs: No space left on device"
    assert not session.on_trial_report("tiny-bert-001", REPORT)  # it stops where it is
    for trial in ("tiny-bert-000", "tiny-bert-001"):
        session.on_trial_end(trial)
    assert session.next() is None
    assert [record.status for record in here.records()] == ["running", "running"]
    again = open_session(study, here, tmp_path)
    again.search.start()
    assert again.next() == first

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "write", full)
    with again.ending_on_full_disk():
        again.on_trial_end("tiny-bert-000")
    assert str(here.folder) in str(again.full)
    with pytest.raises(OSError, match="Permission"), again.ending_on_full_disk():
        raise OSError(errno.EACCES, "Permission denied")


def test_a_trial_that_waits_or_came_further_is_not_counted_for_the_memory_of_another(
    tmp_path: Path,
) -> None:
    study = tiny.study(
        tmp_path,
        "search.space={train.learning_rate: {grid: [0.001, 0.002, 0.004]}}",
        "search.algorithm=grid",
    )
    study = study.model_copy(
        update={"resources": study.resources.model_copy(update={"max_failures": 1})}
    )
    here = Run.start(study)
    first = open_session(study, here, tmp_path)
    first.search.start()
    assert all(first.next() for _ in range(3))
    session = open_session(study, here, tmp_path)  # all three are to be resumed
    session.search.start()
    names = [f"tiny-bert-00{number}" for number in range(3)]

    def next_name() -> str | None:
        start = session.next()
        return start and start.assignment.trial

    assert [next_name(), next_name()] == names[:2]
    assert session.requeue("memory")
    assert (
        session.num_losses[names[0]],
        session.num_losses[names[1]],
        session.num_losses[names[2]],
    ) == (1, 1, 0)
    assert [next_name() for _ in range(3)] == [names[2], names[0], names[1]]  # each once
    session.on_trial_report(names[1], {**REPORT, "training_iteration": 1})
    assert session.requeue("memory")
    assert [record.status for record in here.records()] == ["failed", "running", "running"]
    assert [next_name(), next_name(), next_name()] == [names[1], names[2], None]
    session.on_trial_end(names[1])
    assert not session.requeue(
        "memory"
    )  # the third was under way twice and came no further: nothing is left to run
    assert [record.status for record in here.records()] == ["failed", "finished", "failed"]


def test_an_interrupted_search_waits_for_the_trials_that_train_and_asks_the_others_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = tiny.study(
        tmp_path, GRID, "search.algorithm=grid", "resources={grace_s: 0.5, cpus_per_worker: 1}"
    )
    here = Run.start(study)
    session = open_session(study, here, tmp_path)
    session.search.start()
    assert session.next()
    assert session.next()
    training, evaluating = (
        StopFiles(here.trial_dir(f"tiny-bert-00{number}")) for number in range(2)
    )

    session.interrupt()
    assert not caplog.messages  # no trial trains, so it does not wait
    assert evaluating.is_requested()

    training.open()
    storing = threading.Timer(0.2, training.close)
    storing.start()
    start = time.monotonic()
    session.interrupt()
    assert time.monotonic() - start >= 0.2
    storing.join()
    assert [message.split(":")[0] for message in caplog.messages] == ["interrupted"]

    training.open()
    session.interrupt()
    assert "no state within resources.grace_s 0.5: tiny-bert-000;" in caplog.text
    again = open_session(study, here, tmp_path)
    again.search.start()
    assert again.next()
    assert not stop.is_pending(training.folder)
    assert not training.is_requested()  # a request to an earlier process is void


def test_a_second_interrupt_ends_the_wait_for_a_trial_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here = Run.start(study := tiny.study(tmp_path, "resources.grace_s=600"))
    session = open_session(study, here, tmp_path)
    session.search.start()
    assert session.next()
    StopFiles(here.trial_dir("tiny-bert-000")).open()  # it trains and stores no state

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.interrupt()
    assert "within 600 s; interrupt again to end it at once" in caplog.text
    assert "no state within" not in caplog.text
