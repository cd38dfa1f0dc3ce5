"""From a run's leaderboard to a release: which checkpoint won, and what test rows said about it."""

from pathlib import Path

from medray import storage
from medray.checkpoint import MANIFEST
from medray.config import StudyConfig
from medray.records import TestRecord
from medray.registry import Registry, Release
from medray.selection import leaderboard
from medray.selection.leaderboard import Entry, Leaderboard
from medray.tuning.runs import LEADERBOARD, Run, latest


def of_study(study: StudyConfig, run: Run, board: Leaderboard) -> Release:
    """Publish the winner and point the alias at it; a study that is resumed does not publish the same again."""
    assert study.publish is not None
    asked = study.publish
    registry = Registry(asked.storage_path or str(run.storage_dir))
    release = _publish(registry, board, board.best, asked.name, f"winner of the study {study.name}")
    # Pointed once: a study that is looked at again must not undo a promotion or rollback that came after it.
    if all(move.version != release.record.version for move in registry.history(asked.name, asked.alias)):
        registry.point(asked.name, asked.alias, release.record.version)
    return release


def publish(registry: Registry, place: str, name: str, *, notes: str = "") -> Release:
    """A study's or run's winner, or a checkpoint; with its test figures where its run judged it."""
    folder = Path(place) if Path(place).exists() else storage.absolute(place)
    if "://" in place or (folder / MANIFEST).is_file():
        board, entry = _judged(folder)
        return _publish(registry, board, entry, name, notes) if board and entry else registry.publish(place, name, notes=notes)
    board = latest(folder).leaderboard()
    return _publish(registry, board, board.best, name, notes)


def _judged(checkpoint: Path) -> tuple[Leaderboard | None, Entry | None]:
    """The leaderboard line of a checkpoint that still lies in its run."""
    folder = checkpoint.resolve()
    above = folder.parents
    if len(above) < 4 or not (above[3] / LEADERBOARD).is_file():
        return None, None
    board = Run(above[3]).leaderboard()
    found = (entry for entry in board.entries if entry.checkpoint and Path(entry.checkpoint) == folder and entry.test)
    return board, next(found, None)


def _publish(registry: Registry, board: Leaderboard, entry: Entry, name: str, notes: str) -> Release:
    assert entry.checkpoint is not None
    record = TestRecord(metrics=dict(entry.test), num_rows=board.num_rows["test"], num_openings=board.num_openings)
    held = registry.find(name, Path(entry.checkpoint))
    return held or registry.publish(entry.checkpoint, name, test=record, merge=leaderboard.merge_of(entry, board.metric), notes=notes)
