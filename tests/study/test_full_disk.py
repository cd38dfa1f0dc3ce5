"""The disk fills up during a study. The error is one sentence, no file is incomplete, and the study
resumes once there is room."""

import errno
import os
import sys
from pathlib import Path

import pytest
import torch
import typer
from support import tiny
from support.chaos import fill

from medray import cli
from medray.errors import DiskFullError
from medray.storage import checkpoint, files
from medray.training import worker


def test_a_trial_that_cannot_write_says_so_and_leaves_what_it_wrote_whole(
    small: Path, tmp_path: Path
) -> None:
    study = tiny.study(tmp_path, "train.epochs=3")
    reports = []

    def report(row: object) -> None:
        reports.append(row)
        if len(reports) == 2:
            fill(small)

    trial = tiny.trial(study, tmp_path, report=report)
    trial.folder = small / "trial"
    with pytest.raises(
        DiskFullError,
        match=r"trial: No space left on device; files written before are complete; .* --resume",
    ):
        trial.run()
    assert len(reports) == 2
    assert sorted(path.name for path in (small / "trial").rglob("*step-*")) == [
        "step-000005",
        "step-000010",
        "step-000010",
    ]
    for folder in (small / "trial" / "checkpoints").iterdir():
        checkpoint.verify(folder)
    (small / "filler").unlink()
    again = tiny.trial(study, tmp_path)
    again.folder = small / "trial"
    result = again.run(resume=True)
    reference = tiny.trial(study, tmp_path).run()
    assert [row.metrics for row in result.history] == [row.metrics for row in reference.history]


@pytest.mark.parametrize(
    "raise_",
    [
        lambda folder: (folder / "a").write_bytes(b"0" * 100_000),
        lambda folder: torch.save({"a": torch.zeros(100_000)}, (folder / "b").open("wb")),
        lambda folder: files.write(folder / "c", b"0" * 100_000),
    ],
)
def test_whoever_finds_the_disk_full_it_is_told_alike(small: Path, raise_) -> None:  # type: ignore[no-untyped-def]
    fill(small)
    with pytest.raises(DiskFullError, match=r"small: No space left"), files.room_for(small):
        raise_(small)


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.room_for(tmp_path):
        (tmp_path / "not there" / "file").write_bytes(b"")
    assert not files.is_full(OSError(errno.EACCES, os.strerror(errno.EACCES)))


def test_every_command_tells_a_full_disk_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(place: str) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "runs/x")

    app = typer.Typer()
    app.command("gc")(write)
    app.command("study")(write)
    monkeypatch.setattr(sys.modules["medray.cli.main"], "app", app)
    assert cli.main(["gc", "runs"]) == 1
    message = capsys.readouterr().err
    assert message.startswith(
        "medray: runs/x: No space left on device; files written before are complete; free space ("
    )
    assert message.endswith("then run the command again\n")
    assert cli.main(["study", "study.yaml"]) == 1
    assert capsys.readouterr().err.endswith(
        "then `medray study --resume` continues from the last stored state\n"
    )


def test_a_log_without_room_hides_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match="of the trial"), worker.TrialLog(tmp_path):
        worker.log.info("a line that finds no room")
        raise DiskFullError("of the trial")
    assert (
        "No space" not in capsys.readouterr().err
    )  # the logging module would print a traceback for every line
