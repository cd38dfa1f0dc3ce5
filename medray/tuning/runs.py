"""A run of a study on disk: its settings, the record and history of each trial, and what was chosen in the end."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medray import config as configs
from medray import storage
from medray.config import StudyConfig
from medray.errors import ArtifactError, ConfigError, TrialError
from medray.overlay import parse
from medray.records import HISTORY, TrialRecord
from medray.selection import analysis, tables
from medray.selection.analysis import Analysis
from medray.selection.leaderboard import Leaderboard
from medray.tuning import changes

SETTINGS = "study.yaml"
LEADERBOARD = "leaderboard.json"
ANALYSIS = "analysis.json"
SAMPLES = "samples.json"
_SPENT = "spent.json"
_PATIENCE_S = 1.0


@dataclass(frozen=True)
class Run:
    folder: Path
    given: StudyConfig | None = field(default=None, compare=False, repr=False)  # with secrets, which its file does not hold

    @classmethod
    def start(cls, study: StudyConfig) -> "Run":
        run = cls(study_dir(study) / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f"), study)
        storage.write(run.folder / SETTINGS, _stored(study).encode())
        return run

    @classmethod
    def resume(cls, study: StudyConfig) -> "Run":
        """The latest run of a study; one that has ended and is asked for more is open again."""
        run = cls(latest(study_dir(study)).folder, study)
        kept = configs.load([run.folder / SETTINGS])
        changes.check(kept, study, str(run.folder))
        if (run.folder / SETTINGS).read_text(encoding="utf-8") != (content := _stored(study)):
            with run.held():
                if changes.asks_for_more(kept, study):
                    run.reopen()
                storage.write(run.folder / SETTINGS, content.encode())
        return run

    def settings(self) -> StudyConfig:
        return self.given or configs.load([self.folder / SETTINGS])

    def reopen(self) -> None:
        """What was ranked stays beside what will be."""
        number = sum(1 for _ in self.folder.glob("leaderboard-*.json")) + 1
        if (self.folder / LEADERBOARD).exists():
            (self.folder / LEADERBOARD).rename(self.folder / f"leaderboard-{number}.json")

    @contextmanager
    def held(self) -> Iterator[None]:
        """For one process at a time: two would write over each other's trials."""
        lock = FileLock(self.folder / ".lock")
        try:
            with lock.acquire(timeout=_PATIENCE_S):
                yield
        except Timeout:
            raise ConfigError(f"{self.folder}: another process runs this study; wait for its end, or stop it first") from None

    @property
    def storage_dir(self) -> Path:
        """Where the study's storage path is, which runs and releases share."""
        return self.folder.parent.parent

    def trial_dir(self, trial: str) -> Path:
        return self.folder / "trials" / trial

    def records(self) -> list[TrialRecord]:
        """Of every trial, in the order they were proposed."""
        found = [TrialRecord.model_validate_json(path.read_bytes()) for path in (self.folder / "trials").glob("*/trial.json")]
        return sorted(found, key=lambda record: (record.number, record.base, record.seed, record.fold))

    def write(self, record: TrialRecord) -> None:
        storage.write(self.trial_dir(record.trial) / "trial.json", record.model_dump_json(indent=1).encode())

    def spent_s(self) -> float:
        """Seconds of search by the processes that worked on this run."""
        path = self.folder / _SPENT
        return float(json.loads(path.read_bytes())["seconds"]) if path.exists() else 0.0

    def write_spent(self, seconds: float) -> None:
        storage.write(self.folder / _SPENT, json.dumps({"seconds": seconds}).encode())

    def history(self, trial: str) -> list[dict[str, Any]]:
        """Every evaluation of a trial, first to last."""
        path = self.trial_dir(trial) / HISTORY
        rows: list[dict[str, Any]] = json.loads(path.read_bytes()) if path.exists() else []
        return rows

    def leaderboard(self) -> Leaderboard:
        path = self.folder / LEADERBOARD
        if not path.exists():
            raise TrialError(f"{self.folder}: has no {LEADERBOARD}: its study has not ended; `medray study --resume` goes on")
        return tables.from_json(path.read_text(encoding="utf-8"), str(path))

    def analysis(self) -> Analysis | None:
        """What lies behind the figures of its finalists; a run of before there was one has none."""
        path = self.folder / ANALYSIS
        return analysis.from_json(path.read_bytes(), str(path)) if path.exists() else None

    def checkpoint(self, trial: str, step: int) -> Path:
        return self.trial_dir(trial) / "checkpoints" / f"step-{step:06d}"


def study_dir(study: StudyConfig) -> Path:
    """Where a study's runs are: absolute, as Tune needs it."""
    return storage.absolute(study.storage_path) / study.name


def _stored(study: StudyConfig) -> str:
    """The settings as a run keeps them, which later commands must be able to read."""
    content = configs.dump(study)
    parse(content, f"study {study.name}, with all its files and settings,")
    return content


def latest(folder: Path) -> Run:
    """The last run of a study's folder, or the run that the folder is."""
    found = folder if (folder / SETTINGS).is_file() else max((path.parent for path in folder.glob(f"*/{SETTINGS}")), default=None)
    if found is None:
        raise ArtifactError(f"{folder}: holds no run of a study (a folder with {SETTINGS})")
    return Run(found.resolve())


def slug(source: str) -> str:
    """A short name of a base model for folders."""
    name = source.rsplit(":", 1)[-1].strip("/").rsplit("/", 1)[-1].lower()
    return "".join(char if char.isalnum() or char in "._-" else "-" for char in name)


def slugs(sources: Sequence[str]) -> list[str]:
    """One for each, numbered where an earlier one is alike: a base model that is appended renames none."""
    names: list[str] = []
    for source in sources:
        name, number = slug(source), 2
        while name in names:
            name, number = f"{slug(source)}-{number}", number + 1
        names.append(name)
    return names
