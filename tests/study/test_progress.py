"""The progress that a search prints."""

import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from medray.records import Evaluation, TrialRecord
from medray.study import progress as study_progress
from medray.study.progress import Progress
from medray.training import status
from medray.training.status import StatusFile


def record(trial: str, status: str = "running") -> TrialRecord:
    return TrialRecord.model_construct(trial=trial, base_model="tiny", status=status, error=None)


FIRST = Evaluation(
    1, 5, 0.5, {"f1": 0.7}, is_best=True, epochs=1.0, is_last=False, seconds=1.0, tokens_per_s=100.0
)


def test_what_is_left_shrinks_while_a_trial_runs_and_counts_those_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(study_progress.time, "monotonic", lambda: now)
    progress = Progress("f1", Console(file=io.StringIO()))
    progress.on_num_trials(4)
    progress.on_trial_start(record("looked-up"))
    progress.on_trial_end(
        record("looked-up", "finished")
    )  # from an earlier process: it has no duration here
    assert progress.eta_s is None
    progress.on_trial_start(record("one"))
    now = 100.0
    progress.on_trial_report(record("one"), FIRST)
    progress.on_trial_end(record("one", "finished"))
    progress.on_trial_start(record("two"))
    assert progress.eta_s == 200
    now = 140.0
    assert progress.eta_s == 160
    progress.on_trial_start(record("three"))
    assert progress.eta_s == (60 + 100) / 2
    now = 300.0
    assert progress.eta_s == 0


def test_trials_that_ended_before_a_resume_count_as_ended_and_not_as_waiting() -> None:
    progress = Progress("f1", Console(file=io.StringIO()), 10)
    progress.on_num_trials(12)
    progress.on_trial_start(record("eleven"))
    progress.on_trial_report(record("eleven"), FIRST)
    progress.on_trial_start(record("twelve"))
    progress.on_trial_end(record("eleven", "finished"))
    assert "11/12 trials ended" in progress.summary()
    assert progress.eta_s is not None
    assert progress.eta_s < 1  # no stage is open


def step(file: StatusFile, number: int, loss: float = 0.5) -> None:
    file.step(epoch=1, step=number, num_steps=96, loss=loss, tokens_per_s=1234.0)


def wait_for(text: str, read: Callable[[], str]) -> str:
    end = time.monotonic() + 60
    while text not in (content := read()):
        assert time.monotonic() < end, content
        time.sleep(0.02)
    return content


def test_a_file_gets_a_line_for_each_trial_between_evaluations_and_for_what_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "WRITE_INTERVAL_S", 0.0)
    output = ""

    def read() -> str:
        nonlocal output
        output += capsys.readouterr().out
        return output

    with Progress("f1", Console(file=io.StringIO()), trials_dir=tmp_path, every_s=0.1) as progress:
        progress.on_num_trials(2)
        progress.stage("starting Ray")
        assert wait_for("starting Ray: ", read).startswith("starting Ray\n")
        progress.on_trial_start(record("one"))
        wait_for("one  starting its process", read)
        file = StatusFile(tmp_path / "one")
        file.stage("loading the base model")
        wait_for("one  loading the base model\n", read)
        step(file, 11)
        wait_for("one  epoch 1  step 11/96  loss 0.5000  1,234 tokens/s\n0/2 trials ended", read)
        step(file, 12, loss=0.25)
        assert "to go" in wait_for("one  epoch 1  step 12/96  loss 0.2500", read).splitlines()[-1]
        file.stage("evaluating")
        wait_for("one  evaluating  epoch 1  step 12/96", read)


def test_a_terminal_shows_steps_loss_speed_best_and_time_left_of_each_trial(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    progress = Progress("f1", console, trials_dir=tmp_path)
    progress.on_num_trials(3)
    for name in ("one", "two"):
        progress.on_trial_start(record(name))
    file = StatusFile(tmp_path / "one")
    step(file, 10)
    file.status = status.Status(status.TRAINING, 1, 12, 96, 0.25, 1234.0, left_s=600.0)
    file.stage(status.TRAINING)
    progress.on_trial_report(record("one"), FIRST)
    console.print(progress.render())
    output = console.file.getvalue()  # type: ignore[attr-defined]
    (line,) = [line for line in output.splitlines() if line.startswith("one")]
    assert line.split() == [
        "one",
        "1",
        "12/96",
        "0.2500",
        "1,234",
        "0.7000",
        "0.7000",
        "10",
        "min",
        "training",
    ]
    assert "two" in output
    assert (
        "best so far 0.7000 (one)  0/3 trials ended  about 15 min to go" in output
    )  # 600 s of the one, twice, and 1 to come


def test_a_status_is_written_every_few_seconds_at_most_and_never_fails(tmp_path: Path) -> None:
    file = StatusFile(tmp_path)
    step(file, 1)
    step(file, 2)
    assert status.read(tmp_path) == status.Status(status.TRAINING, 1, 1, 96, 0.5, 1234.0)
    file.stage("evaluating")  # the last step is known even when it is not written
    content = status.read(tmp_path)
    assert content is not None
    assert (content.stage, content.step) == ("evaluating", 2)
    file.clear()
    assert status.read(tmp_path) is None
    (tmp_path / "file").write_text("")
    StatusFile(tmp_path / "file" / "trial").stage(
        "loading the base model"
    )  # a folder that cannot be made
