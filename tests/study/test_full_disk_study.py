"""The disk fills up during a study on Ray. The error is one sentence, no file is incomplete, and
the study resumes once there is room."""

import time
from pathlib import Path

import pytest
from support.chaos import Figures, Study, epochs_trained_twice, figures, fill, write_study

from medray.storage import checkpoint
from medray.study.run import latest


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("launcher", ["inline", "train"])
def test_a_study_whose_disk_fills_up_ends_with_a_sentence_and_goes_on_once_there_is_room(
    small: Path, launcher: str, undisturbed_figures: Figures
) -> None:
    settings = (f"resources.launcher={launcher}",)
    path = write_study(small, *settings)
    study = Study(path)
    try:
        study.until(r"tiny-bert-\d+  epoch 2 ")
        start = time.monotonic()
        filler = fill(small)
        end = study.end()
    finally:
        study.abandon()
    seconds = time.monotonic() - start
    run = latest(small / "runs" / "tiny")
    messages = [line for line in end.output.splitlines() if "No space left on device" in line]
    print(f"{launcher}: ended after {seconds:.0f} s: {messages}")
    assert end.status == 1, end.output
    assert len(messages) == 1, end.output
    assert messages[0].startswith(f"medray: {run.folder}")
    assert "Traceback" not in end.output
    for folder in (run.folder / "trials").glob("*/checkpoints/step-*"):
        checkpoint.verify(folder)
    assert {record.status for record in run.records()} <= {"running", "finished"}
    filler.unlink()
    end = Study(path, "--resume").end()
    assert end.status == 0, end.output
    assert figures(run) == undisturbed_figures
    again = epochs_trained_twice(run)
    print(f"{launcher}: epochs trained twice {again:.2f}")
    assert again <= 2  # one evaluation interval for each trial that ran
