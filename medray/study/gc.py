"""Find and remove unnecessary files of finished studies: checkpoints and states of other trials
than the best."""

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
    """A folder that can be removed."""

    run: Run
    trial: str
    folder: Path
    num_bytes: int


@dataclass(frozen=True)
class Sweep:
    """The folders that can be removed, and the runs that were skipped."""

    surplus: list[Surplus]
    skips: list[str]  # one sentence per skipped run, with the reason

    @property
    def num_bytes(self) -> int:
        return sum(item.num_bytes for item in self.surplus)


def find(place: Path, *, finalists: bool = False) -> Sweep:
    """Search a run, a study's folder or a storage path. `finalists` includes finalists that did
    not win."""
    surplus: list[Surplus] = []
    skips: list[str] = []
    for run in _runs(place):
        if not (run.folder / LEADERBOARD).is_file():
            skips.append(
                f"{run.folder}: has not ended; `medray study --resume` may need all its files"
            )
            continue
        try:
            with run.lock():
                surplus += _surplus(run, finalists)
        except ConfigError as err:
            skips.append(str(err))
    return Sweep(surplus, skips)


def remove(surplus: Sequence[Surplus]) -> None:
    for item in surplus:
        with item.run.lock():
            shutil.rmtree(item.folder, ignore_errors=True)


def _runs(place: Path) -> list[Run]:
    folders = {
        path.parent for depth in ("", "*/", "*/*/") for path in place.glob(f"{depth}{SETTINGS}")
    }
    if not folders:
        raise ArtifactError(
            f"{place}: has no run of a study; name a folder with {SETTINGS}, or one above it"
        )
    return [Run(folder.resolve()) for folder in sorted(folders)]


def _surplus(run: Run, finalists: bool) -> Iterator[Surplus]:
    board = run.leaderboard()
    winners = {board.winner, *(board.best.seeds.trials if board.best.seeds else ())}
    finalist_trials = {
        name
        for entry in board.entries
        if entry.test
        for name in (entry.name, *(entry.seeds.trials if entry.seeds else ()))
    }
    to_keep = winners if finalists else finalist_trials
    release_ids = _content_ids(run)
    best = Path(str(board.best.checkpoint)).resolve()
    for record in run.records():
        # Repeats of a finalist are kept or removed with it.
        is_needed = record.trial in to_keep or record.of in to_keep
        for kind in _KINDS:
            for folder in sorted((run.trial_dir(record.trial) / kind).glob("*")):
                is_partial = folder.name.startswith(".")  # its process died during the write
                has_release = (folder / MANIFEST).is_file() and (
                    folder.resolve() == best or checkpoint.content_id(folder) in release_ids
                )
                if is_partial or not (is_needed or has_release):
                    yield Surplus(run, record.trial, folder, _size(folder))


def _content_ids(run: Run) -> set[str]:
    """Return the content ids of all releases in this study's registries."""
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
