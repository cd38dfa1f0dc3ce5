"""A run of a study on disk: its settings, the record and history of each trial, and its
leaderboard."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medray.config.files import parse
from medray.config.load import dump_settings, load_study
from medray.config.study import StudyConfig
from medray.errors import ArtifactError, ConfigError, TrialError
from medray.evaluation import analysis, leaderboard_files
from medray.evaluation.analysis import Analysis
from medray.evaluation.leaderboard import Entry, Leaderboard
from medray.evaluation.trial_entries import entry_of
from medray.records import HISTORY, SAMPLES, SETTINGS, Evaluation, TrialRecord, parse_history
from medray.storage import files
from medray.storage.checkpoint import MANIFEST
from medray.study import resume

LEADERBOARD = "leaderboard.json"
ANALYSIS = "analysis.json"
_SEARCH_TIME = "spent.json"
_PATIENCE_S = 1.0


@dataclass(frozen=True)
class Conclusion:
    """The results that a study writes at its end."""

    board: Leaderboard
    analysis: Analysis | None  # None for a task that generates text
    samples: Mapping[str, Any]  # the user's own prompts, and the finalists' answers


@dataclass(frozen=True)
class Run:
    folder: Path
    # The settings with their secrets, which the run's file does not hold.
    study: StudyConfig | None = field(default=None, compare=False, repr=False)

    @classmethod
    def start(cls, study: StudyConfig) -> "Run":
        run = cls(study_dir(study) / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f"), study)
        files.write(run.folder / SETTINGS, _content_of(study).encode())
        return run

    @classmethod
    def resume(cls, study: StudyConfig) -> "Run":
        """Return the latest run of a study, and reopen a finished run if the study has more to
        do."""
        run = cls(latest(study_dir(study)).folder, study)
        old = load_study([run.folder / SETTINGS])
        resume.check_settings(old, study, str(run.folder))
        if (run.folder / SETTINGS).read_text(encoding="utf-8") != (content := _content_of(study)):
            with run.lock():
                if resume.wants_more(old, study):
                    run.reopen()
                files.write(run.folder / SETTINGS, content.encode())
        return run

    def settings(self) -> StudyConfig:
        return self.study or load_study([self.folder / SETTINGS])

    def reopen(self) -> None:
        """Set the leaderboard aside under a number, so that the run is unfinished again."""
        number = sum(1 for _ in self.folder.glob("leaderboard-*.json")) + 1
        if (self.folder / LEADERBOARD).exists():
            (self.folder / LEADERBOARD).rename(self.folder / f"leaderboard-{number}.json")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out. Two processes would overwrite each other's trials."""
        file = FileLock(self.folder / ".lock")
        try:
            with file.acquire(timeout=_PATIENCE_S):
                yield
        except Timeout:
            raise ConfigError(
                f"{self.folder}: another process runs this study; wait for its end, or stop it "
                "first"
            ) from None

    @property
    def storage_dir(self) -> Path:
        """The study's storage path, which runs and releases share."""
        return self.folder.parent.parent

    def trial_dir(self, trial: str) -> Path:
        return self.folder / "trials" / trial

    def records(self) -> list[TrialRecord]:
        """Return the record of each trial, in the order of their proposal."""
        records = [
            TrialRecord.model_validate_json(path.read_bytes())
            for path in (self.folder / "trials").glob("*/trial.json")
        ]
        return sorted(
            records, key=lambda record: (record.number, record.base, record.seed, record.fold)
        )

    def write(self, record: TrialRecord) -> None:
        files.write(
            self.trial_dir(record.trial) / "trial.json", record.model_dump_json(indent=1).encode()
        )

    def search_time_s(self) -> float:
        """Return the seconds of search by all processes of this run."""
        path = self.folder / _SEARCH_TIME
        return float(json.loads(path.read_bytes())["seconds"]) if path.exists() else 0.0

    def write_search_time(self, seconds: float) -> None:
        files.write(self.folder / _SEARCH_TIME, json.dumps({"seconds": seconds}).encode())

    def history(self, trial: str) -> list[Evaluation]:
        """Return each evaluation of a trial, first to last."""
        path = self.trial_dir(trial) / HISTORY
        return parse_history(path.read_bytes()) if path.exists() else []

    def is_finished(self) -> bool:
        return (self.folder / LEADERBOARD).exists()

    def finish(self, conclusion: Conclusion) -> None:
        """Write the conclusion. The leaderboard is last, since it marks a run as finished."""
        board, samples = conclusion.board, conclusion.samples
        histories = {record.trial: self.history(record.trial) for record in self.records()}
        files.write(
            self.folder / "history.csv",
            leaderboard_files.to_csv(leaderboard_files.history_rows(histories)).encode(),
        )
        files.write(
            self.folder / "leaderboard.csv",
            leaderboard_files.to_csv(leaderboard_files.rows(board)).encode(),
        )
        files.write(
            self.folder / "leaderboard.md",
            leaderboard_files.to_markdown(board, conclusion.analysis).encode(),
        )
        if conclusion.analysis:
            files.write(self.folder / ANALYSIS, analysis.to_json(conclusion.analysis))
        if samples:
            files.write(
                self.folder / SAMPLES, json.dumps(samples, indent=1, ensure_ascii=False).encode()
            )
        files.write(self.folder / LEADERBOARD, leaderboard_files.to_json(board).encode())

    def leaderboard(self) -> Leaderboard:
        path = self.folder / LEADERBOARD
        if not path.exists():
            raise TrialError(
                f"{self.folder}: has no {LEADERBOARD}: its study has not ended; finish it with "
                "`medray study --resume`"
            )
        return leaderboard_files.from_json(path.read_text(encoding="utf-8"), str(path))

    def analysis(self) -> Analysis | None:
        """Return the analysis of the finalists. A run of an early medray has none."""
        path = self.folder / ANALYSIS
        return analysis.from_json(path.read_bytes(), str(path)) if path.exists() else None

    def entries(self, metric: str, is_included: Callable[[TrialRecord], bool]) -> list[Entry]:
        """Return trials at their best evaluation, each with its checkpoint's folder if that
        exists."""
        records = [record for record in self.records() if is_included(record)]
        entries = [entry_of(record, self.history(record.trial), metric) for record in records]
        return [replace(entry, checkpoint=self._checkpoint_of(entry)) for entry in entries]

    def _checkpoint_of(self, entry: Entry) -> str | None:
        if entry.step is None:
            return None
        folder = self.checkpoint(entry.name, entry.step)
        return str(folder) if (folder / MANIFEST).exists() else None

    def checkpoint(self, trial: str, step: int) -> Path:
        return self.trial_dir(trial) / "checkpoints" / f"step-{step:06d}"


def study_dir(study: StudyConfig) -> Path:
    """Return the folder of a study's runs, as the absolute path that Ray Tune requires."""
    return files.absolute(study.storage_path) / study.name


def _content_of(study: StudyConfig) -> str:
    """Return the settings as a run stores them, and check that later commands can read them."""
    content = dump_settings(study)
    parse(content, f"study {study.name}, with all its files and settings,")
    return content


def latest(folder: Path) -> Run:
    """Return the latest run in a study's folder, or the run of this folder itself."""
    newest = (
        folder
        if (folder / SETTINGS).is_file()
        else max((path.parent for path in folder.glob(f"*/{SETTINGS}")), default=None)
    )
    if newest is None:
        raise ArtifactError(
            f"{folder}: has no run of a study; name a folder with {SETTINGS}, or one above it"
        )
    return Run(newest.resolve())


def slug(source: str) -> str:
    """Return a short name of a base model for folders."""
    name = source.rsplit(":", 1)[-1].strip("/").rsplit("/", 1)[-1].lower()
    return "".join(char if char.isalnum() or char in "._-" else "-" for char in name)


def slugs(sources: Sequence[str]) -> list[str]:
    """Return one slug per base model, with a number where an earlier slug is the same. A base
    model appended later does not change them."""
    names: list[str] = []
    for source in sources:
        name, number = slug(source), 2
        while name in names:
            name, number = f"{slug(source)}-{number}", number + 1
        names.append(name)
    return names
