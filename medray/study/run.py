"""A run of a study on disk: its settings, the record and history of each trial, and what was chosen
in the end.

`check` compares its settings with those of a resume, and names each that may not change.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medray.config.addresses import comparable
from medray.config.files import parse
from medray.config.load import dump_settings, load_study
from medray.config.study import StudyConfig
from medray.errors import ArtifactError, ConfigError, TrialError
from medray.evaluation import analysis, leaderboard, leaderboard_files
from medray.evaluation.analysis import Analysis
from medray.evaluation.leaderboard import Entry, Leaderboard
from medray.records import HISTORY, SAMPLES, SETTINGS, Evaluation, TrialRecord, parse_history
from medray.storage import files
from medray.storage.checkpoint import MANIFEST

LEADERBOARD = "leaderboard.json"
ANALYSIS = "analysis.json"
_SPENT = "spent.json"
_PATIENCE_S = 1.0


@dataclass(frozen=True)
class Conclusion:
    """What a study writes at its end."""

    board: Leaderboard
    analysis: Analysis | None  # none where answers are texts
    samples: Mapping[str, Any]  # the user's own prompts, and the finalists' answers


@dataclass(frozen=True)
class Run:
    folder: Path
    given: StudyConfig | None = field(
        default=None, compare=False, repr=False
    )  # with secrets, which its file does not hold

    @classmethod
    def start(cls, study: StudyConfig) -> "Run":
        run = cls(study_dir(study) / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f"), study)
        files.write(run.folder / SETTINGS, _stored(study).encode())
        return run

    @classmethod
    def resume(cls, study: StudyConfig) -> "Run":
        """The latest run of a study; one that is finished is opened again where the study now wants
        more."""
        run = cls(latest(study_dir(study)).folder, study)
        old = load_study([run.folder / SETTINGS])
        check(old, study, str(run.folder))
        if (run.folder / SETTINGS).read_text(encoding="utf-8") != (content := _stored(study)):
            with run.lock():
                if wants_more(old, study):
                    run.reopen()
                files.write(run.folder / SETTINGS, content.encode())
        return run

    def settings(self) -> StudyConfig:
        return self.given or load_study([self.folder / SETTINGS])

    def reopen(self) -> None:
        """What was ranked stays beside what will be."""
        number = sum(1 for _ in self.folder.glob("leaderboard-*.json")) + 1
        if (self.folder / LEADERBOARD).exists():
            (self.folder / LEADERBOARD).rename(self.folder / f"leaderboard-{number}.json")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out: two would write over each other's trials."""
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
        """Where the study's storage path is, which runs and releases share."""
        return self.folder.parent.parent

    def trial_dir(self, trial: str) -> Path:
        return self.folder / "trials" / trial

    def records(self) -> list[TrialRecord]:
        """Of every trial, in the order they were proposed."""
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

    def spent_s(self) -> float:
        """Seconds of search by the processes that worked on this run."""
        path = self.folder / _SPENT
        return float(json.loads(path.read_bytes())["seconds"]) if path.exists() else 0.0

    def write_spent(self, seconds: float) -> None:
        files.write(self.folder / _SPENT, json.dumps({"seconds": seconds}).encode())

    def history(self, trial: str) -> list[Evaluation]:
        """Every evaluation of a trial, first to last."""
        path = self.trial_dir(trial) / HISTORY
        return parse_history(path.read_bytes()) if path.exists() else []

    def is_finished(self) -> bool:
        return (self.folder / LEADERBOARD).exists()

    def finish(self, conclusion: Conclusion) -> None:
        """Write what the study concludes; the leaderboard is last, since it marks a run as
        finished."""
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
                f"{self.folder}: has no {LEADERBOARD}: its study has not ended; `medray study "
                "--resume` goes on"
            )
        return leaderboard_files.from_json(path.read_text(encoding="utf-8"), str(path))

    def analysis(self) -> Analysis | None:
        """What lies behind the figures of its finalists; a run of before there was one has none."""
        path = self.folder / ANALYSIS
        return analysis.from_json(path.read_bytes(), str(path)) if path.exists() else None

    def entries(self, metric: str, is_wanted: Callable[[TrialRecord], bool]) -> list[Entry]:
        """Trials at their best evaluation, each with the folder of that checkpoint if it is
        there."""
        records = [record for record in self.records() if is_wanted(record)]
        entries = [
            leaderboard.entry_of(record, self.history(record.trial), metric) for record in records
        ]
        return [replace(entry, checkpoint=self._stored_checkpoint(entry)) for entry in entries]

    def _stored_checkpoint(self, entry: Entry) -> str | None:
        if entry.step is None:
            return None
        folder = self.checkpoint(entry.name, entry.step)
        return str(folder) if (folder / MANIFEST).exists() else None

    def checkpoint(self, trial: str, step: int) -> Path:
        return self.trial_dir(trial) / "checkpoints" / f"step-{step:06d}"


def study_dir(study: StudyConfig) -> Path:
    """Where a study's runs are: absolute, as Tune needs it."""
    return files.absolute(study.storage_path) / study.name


def _stored(study: StudyConfig) -> str:
    """The settings as a run keeps them, which later commands must be able to read."""
    content = dump_settings(study)
    parse(content, f"study {study.name}, with all its files and settings,")
    return content


def latest(folder: Path) -> Run:
    """The last run of a study's folder, or the run that the folder is."""
    newest = (
        folder
        if (folder / SETTINGS).is_file()
        else max((path.parent for path in folder.glob(f"*/{SETTINGS}")), default=None)
    )
    if newest is None:
        raise ArtifactError(f"{folder}: holds no run of a study (a folder with {SETTINGS})")
    return Run(newest.resolve())


def slug(source: str) -> str:
    """A short name of a base model for folders."""
    name = source.rsplit(":", 1)[-1].strip("/").rsplit("/", 1)[-1].lower()
    return "".join(char if char.isalnum() or char in "._-" else "-" for char in name)


def slugs(sources: Sequence[str]) -> list[str]:
    """One for each, numbered where an earlier one is alike: a base model that is appended renames
    none."""
    names: list[str] = []
    for source in sources:
        name, number = slug(source), 2
        while name in names:
            name, number = f"{slug(source)}-{number}", number + 1
        names.append(name)
    return names


# None of these changes what a trial that was run has computed.
CHANGEABLE = (
    "search.num_trials",
    "search.num_epochs",
    "search.time_s",
    "search.max_failed",
    "search.num_finalists",
    "search.num_seeds",
    "search.tie",
    "search.tie.parameters",
)
_CHANGEABLE_SECTIONS = ("publish", "resources")
_CHANGEABLE_MEMORY = ("train.token_budget", "train.keep_checkpoints")
_SHOWN = 6


def check(old: StudyConfig, new: StudyConfig, where: str) -> None:
    """Refuse what would mix two configurations in one ranking, each by its name."""
    before, after = (dict(leaves(study.model_dump(mode="json"))) for study in (old, new))
    names = [
        name for name in {**before, **after} if not _is_same(before.get(name), after.get(name))
    ]
    refused = [name for name in names if not _may_change(name, len(old.base_models))]
    if not refused:
        return
    listed = "; ".join(
        f"{name} was {before.get(name, 'not set')!r} and is {after.get(name, 'not set')!r}"
        for name in refused[:_SHOWN]
    )
    more = f" and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
    allowed = ", ".join([*CHANGEABLE, *_CHANGEABLE_SECTIONS, *_CHANGEABLE_MEMORY])
    raise ConfigError(
        f"{where}: was started with other settings: {listed}{more}; a study that goes on may "
        f"change {allowed} and num_trials"
        " of a base model, and append base models; for anything else start anew, without --resume"
    )


def wants_more(old: StudyConfig, new: StudyConfig) -> bool:
    """Whether a study that has ended has something left to train or to judge."""

    def wanted(study: StudyConfig) -> list[int]:
        return [base.num_trials or study.search.num_trials or 1 for base in study.base_models]

    def budget(value: float | None) -> float:
        return float("inf") if value is None else value

    before, after = old.search, new.search
    return (
        len(new.base_models) > len(old.base_models)
        or any(more > less for less, more in zip(wanted(old), wanted(new), strict=False))
        or budget(after.num_epochs) > budget(before.num_epochs)
        or budget(after.time_s) > budget(before.time_s)
        or after.num_finalists > before.num_finalists
        or after.num_seeds > before.num_seeds
        or after.tie != before.tie
    )


def _is_same(before: Any, after: Any) -> bool:
    """Also an address that was signed again, or whose secret is given or named otherwise: its place
    is the same."""
    return before == after or (
        isinstance(before, str)
        and isinstance(after, str)
        and comparable(before) == comparable(after)
    )


def _may_change(name: str, num_bases: int) -> bool:
    section, _, rest = name.partition(".")
    if section == "base_models":
        place, _, setting = rest.partition(".")
        return int(place) >= num_bases or setting == "num_trials"
    return section in _CHANGEABLE_SECTIONS or name in CHANGEABLE or name in _CHANGEABLE_MEMORY


def leaves(raw: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting under its dotted name; lists of plain values are one setting."""
    if isinstance(raw, dict) and raw:
        for key, value in raw.items():
            yield from leaves(value, f"{name}.{key}" if name else str(key))
    elif name == "base_models":
        for place, base in enumerate(raw):
            yield from leaves(base, f"{name}.{place}")
    else:
        yield name, raw
