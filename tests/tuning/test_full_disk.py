"""A disk that fills up while a study writes to it: one sentence, nothing half-written, and a study that goes on once there is room."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import tiny
import torch
from chaos import GRID
from searched import Seen

from medray import checkpoint, cli, storage
from medray.errors import DiskFullError
from medray.training.worker import FULL
from medray.tuning.placement import Placement
from medray.tuning.runs import Run
from medray.tuning.search import Search
from medray.tuning.session import Session


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with little more room than a study asks for at its start."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a file system that can be filled needs the right to mount one: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """To the last byte."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 65536)
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while file.write(b"0"):
            pass
    return filler


def test_a_trial_that_cannot_write_says_so_and_leaves_what_it_wrote_whole(small: Path, tmp_path: Path) -> None:
    study = tiny.study(tmp_path, "train.epochs=3")
    told = []

    def report(row: object) -> None:
        told.append(row)
        if len(told) == 2:
            fill(small)

    trial = tiny.trial(study, tmp_path, report=report)
    trial.folder = small / "trial"
    with pytest.raises(DiskFullError, match=r"trial: No space left on device; what was written before is whole: .* --resume"):
        trial.run()
    assert len(told) == 2
    assert sorted(path.name for path in (small / "trial").rglob("*step-*")) == ["step-000005", "step-000005", "step-000010"]
    for folder in (small / "trial" / "checkpoints").iterdir():
        checkpoint.verify(folder)
    (small / "filler").unlink()
    again = tiny.trial(study, tmp_path)
    again.folder = small / "trial"
    found = again.run(resume=True)
    undisturbed = tiny.trial(study, tmp_path).run()
    assert [row["metrics"] for row in found.history] == [row["metrics"] for row in undisturbed.history]


@pytest.mark.parametrize(
    "raise_",
    [
        lambda folder: (folder / "a").write_bytes(b"0" * 100_000),
        lambda folder: torch.save({"a": torch.zeros(100_000)}, (folder / "b").open("wb")),
        lambda folder: storage.write(folder / "c", b"0" * 100_000),
    ],
)
def test_whoever_finds_the_disk_full_it_is_told_alike(small: Path, raise_) -> None:  # type: ignore[no-untyped-def]
    fill(small)
    with pytest.raises(DiskFullError, match=r"small: No space left"), storage.room_for(small):
        raise_(small)


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), storage.room_for(tmp_path):
        (tmp_path / "not there" / "file").write_bytes(b"")
    assert not storage.is_full(OSError(errno.EACCES, os.strerror(errno.EACCES)))


def test_every_command_tells_a_full_disk_in_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def app(args: list[str]) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "runs/x")

    monkeypatch.setattr(sys.modules["medray.cli.main"], "app", app)
    assert cli.main(["gc", "runs"]) == 1
    assert capsys.readouterr().err.startswith("medray: runs/x: No space left on device; what was written before is whole: make room (")


def test_a_full_disk_halts_the_search_and_its_trials_stay_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tiny.study(tmp_path, GRID, "search.algorithm=grid")
    here = Run.start(study)

    def begun() -> Session:
        return Session(
            study,
            here,
            Search(study, "f1_macro"),
            material=lambda config: tmp_path,
            placement=lambda config: Placement("inline", 1, 1, 0, 2),
            watcher=Seen(),
        )

    session = begun()
    session.search.start()
    first, second = session.next(), session.next()
    assert first
    assert second
    with session.halting():
        session.told("tiny-bert-000", {FULL: "runs: No space left on device"})
    assert str(session.full) == "runs: No space left on device"
    assert not session.told("tiny-bert-001", {"epochs": 1.0})  # it stops where it is
    for trial in ("tiny-bert-000", "tiny-bert-001"):
        session.ended(trial)
    assert session.next() is None
    assert [record.status for record in here.records()] == ["running", "running"]
    again = begun()
    again.search.start()
    assert again.next() == first

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage, "write", full)
    with again.halting():
        again.ended("tiny-bert-000")
    assert str(here.folder) in str(again.full)
    with pytest.raises(OSError, match="Permission"), again.halting():
        raise OSError(errno.EACCES, "Permission denied")
