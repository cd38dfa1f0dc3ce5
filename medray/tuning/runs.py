"""A run of a study on disk: its settings, the record and history of each trial, and what was chosen in the end."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medray import config as configs
from medray import storage
from medray.config import StudyConfig
from medray.errors import ArtifactError, ConfigError, TrialError
from medray.records import HISTORY, TrialRecord
from medray.selection import analysis, tables
from medray.selection.analysis import Analysis
from medray.selection.leaderboard import Leaderboard

SETTINGS = "study.yaml"
LEADERBOARD = "leaderboard.json"
ANALYSIS = "analysis.json"


@dataclass(frozen=True)
class Run:
    folder: Path

    @classmethod
    def start(cls, study: StudyConfig) -> "Run":
        run = cls(study_dir(study) / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f"))
        storage.write(run.folder / SETTINGS, configs.dump(study).encode())
        return run

    @classmethod
    def resume(cls, study: StudyConfig) -> "Run":
        """The latest run of a study; with other settings it would mix two configurations under one name."""
        run = latest(study_dir(study))
        kept, asked = (run.folder / SETTINGS).read_text(encoding="utf-8"), configs.dump(study)
        if kept != asked:
            lines = difflib.ndiff(kept.splitlines(), asked.splitlines())
            changed = [f"{line[0]} {line[2:].strip()}" for line in lines if line.startswith(("- ", "+ "))]
            raise ConfigError(f"{run.folder}: was started with other settings ({'; '.join(changed[:6])}); resume with those, or start anew")
        return run

    @property
    def storage_dir(self) -> Path:
        """Where the study's storage path is, which runs and releases share."""
        return self.folder.parent.parent

    def trial_dir(self, trial: str) -> Path:
        return self.folder / "trials" / trial

    def records(self) -> list[TrialRecord]:
        """Of every trial, in the order they were proposed."""
        found = [TrialRecord.model_validate_json(path.read_bytes()) for path in (self.folder / "trials").glob("*/trial.json")]
        return sorted(found, key=lambda record: (record.number, record.base))

    def write(self, record: TrialRecord) -> None:
        storage.write(self.trial_dir(record.trial) / "trial.json", record.model_dump_json(indent=1).encode())

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
    """One for each, numbered where two are alike."""
    names = [slug(source) for source in sources]
    return [name if names.count(name) == 1 else f"{name}-{names[: at + 1].count(name)}" for at, name in enumerate(names)]
