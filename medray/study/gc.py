"""Files of finished studies that are no longer needed: checkpoints and states of trials that
lost."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medray.errors import ArtifactError, ConfigError
from medray.records import SETTINGS
from medray.registry.registry import Registry
from medray.storage import checkpoint
from medray.storage.checkpoint import MANIFEST
from medray.study.run import LEADERBOARD, Run

_KINDS = ("checkpoints", "state")


@dataclass(frozen=True)
class Surplus:
    """A folder that can go."""

    run: Run
    trial: str
    folder: Path
    num_bytes: int


@dataclass(frozen=True)
class Sweep:
    """What can go, and what was not looked into."""

    surplus: list[Surplus]
    left_alone: list[str]  # sentences: which runs were not looked into, and why

    @property
    def num_bytes(self) -> int:
        return sum(item.num_bytes for item in self.surplus)


def find(place: Path, *, finalists: bool = False) -> Sweep:
    """In a run, a study's folder or a storage path. With `finalists` those that did not win as
    well."""
    surplus: list[Surplus] = []
    left_alone: list[str] = []
    for run in _runs(place):
        if not (run.folder / LEADERBOARD).is_file():
            left_alone.append(
                f"{run.folder}: has not ended; medray study --resume may need all of it"
            )
            continue
        try:
            with run.lock():
                surplus += _surplus(run, finalists)
        except ConfigError as err:
            left_alone.append(str(err))
    return Sweep(surplus, left_alone)


def remove(surplus: Sequence[Surplus]) -> None:
    for item in surplus:
        with item.run.lock():
            shutil.rmtree(item.folder, ignore_errors=True)


def _runs(place: Path) -> list[Run]:
    folders = {
        path.parent for depth in ("", "*/", "*/*/") for path in place.glob(f"{depth}{SETTINGS}")
    }
    if not folders:
        raise ArtifactError(f"{place}: holds no run of a study (a folder with {SETTINGS})")
    return [Run(folder.resolve()) for folder in sorted(folders)]


def _surplus(run: Run, finalists: bool) -> Iterator[Surplus]:
    board = run.leaderboard()
    won = {board.winner, *(board.best.seeds.trials if board.best.seeds else ())}
    tested = {
        name
        for entry in board.entries
        if entry.test
        for name in (entry.name, *(entry.seeds.trials if entry.seeds else ()))
    }
    kept = won if finalists else tested
    published = _content_ids(run)
    best = Path(str(board.best.checkpoint)).resolve()
    for record in run.records():
        # What repeats a finalist stays and goes with it.
        needed = record.trial in kept or record.of in kept
        for kind in _KINDS:
            for folder in sorted((run.trial_dir(record.trial) / kind).glob("*")):
                is_half = folder.name.startswith(
                    "."
                )  # left by a process that was killed while it wrote
                released = (folder / MANIFEST).is_file() and (
                    folder.resolve() == best or checkpoint.content_id(folder) in published
                )
                if is_half or not (needed or released):
                    yield Surplus(run, record.trial, folder, _size(folder))


def _content_ids(run: Run) -> set[str]:
    """Content ids of everything that a release refers to, where this study publishes to and where
    it would."""
    options = run.settings().publish
    places = {
        str(run.storage_dir),
        *([options.storage_path] if options and options.storage_path else []),
    }
    return {
        registry.resolve(f"{name}@{version}").record.content_id
        for registry in map(Registry, places)
        for name in registry.names()
        for version in registry.versions(name)
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
