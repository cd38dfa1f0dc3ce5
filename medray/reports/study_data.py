"""What a report is made from: the plain data of one run, and the words for it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from medray.config.load import load_study, public_settings
from medray.config.study import StudyConfig
from medray.errors.redaction import redact
from medray.evaluation import leaderboard
from medray.evaluation.analysis import Analysis
from medray.evaluation.leaderboard import Entry, Leaderboard
from medray.records import AS_IT_IS, SAMPLES, SETTINGS, Evaluation, TrialRecord
from medray.registry import card
from medray.registry.card import Facts
from medray.storage import checkpoint
from medray.storage.checkpoint import MANIFEST, Manifest

_AVERAGES = {"macro": "macro", "micro": "micro", "weighted": "weighted", "samples": "per-row"}
_AXES = {
    "train.learning_rate": "learning rate",
    "train.head_learning_rate": "learning rate of the head",
    "train.epochs": "epochs",
    "train.samples_per_step": "rows a step",
    "train.weight_decay": "weight decay",
    "lora.r": "LoRA rank",
    "lora.alpha": "LoRA alpha",
    "lora.dropout": "LoRA dropout",
}
_WORDS = {
    "log_loss": "log loss",
    "accuracy_subset": "accuracy of whole label sets",
    "safe_answer_f1": "safe answer F1",
    "token_f1": "token F1",
    "refusal_f1": "refusal F1",
    "rouge_l": "ROUGE-L",
    "over_refusal": "share of safe questions refused",
    "decision_accuracy": "accuracy of decisions",
}
_NAMES = {
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "auprc": "AUPRC",
    "accuracy": "accuracy",
}


@dataclass(frozen=True)
class StudyData:
    config: StudyConfig
    settings: str  # the resolved study.yaml
    run: str  # where its folder is, as a person names it
    board: Leaderboard
    records: Sequence[TrialRecord]
    histories: Mapping[str, Sequence[Evaluation]]  # of each trial
    winner: Facts | None = None  # None where its checkpoint is gone
    validation: Mapping[str, Any] = field(default_factory=dict)  # metrics.json of the winner
    audit: Mapping[str, Any] = field(default_factory=dict)
    analysis: Analysis | None = None  # None of a run that is older than it
    samples: Mapping[str, Any] = field(
        default_factory=dict
    )  # the user's own prompts, and answers by name
    code: str | None = None  # the commit

    @property
    def day(self) -> str:
        """On which it began."""
        began = [record.started_at for record in self.records if record.started_at is not None]
        return f"{datetime.fromtimestamp(min(began), UTC):%-d %B %Y}" if began else ""

    @property
    def metric(self) -> str:
        return self.board.metric

    @property
    def metric_name(self) -> str:
        return metric_name(self.metric, getattr(self.config.task, "positive_label", None))

    @property
    def trials(self) -> list[Entry]:
        return [entry for entry in self.board.entries if entry.kind == "trial"]

    @property
    def references(self) -> list[Entry]:
        return [entry for entry in self.board.entries if entry.kind == "reference"]

    def series(self, entry: Entry) -> int | None:
        """Which base model's colour; a reference has none."""
        if entry.kind == "reference":
            return None
        known = {record.trial: record.base for record in self.records}
        return known.get(entry.name, entry.base or 0)


def axis_name(path: str) -> str:
    return _AXES.get(path, path)


def metric_name(metric: str, positive: str | None) -> str:
    """A figure in words: `f1_binary` is the F1 of the positive label."""
    if metric in _WORDS:
        return _WORDS[metric]
    name, _, average = metric.partition("_")
    if average == "binary":
        return f"{_NAMES.get(name, name)} for {positive}" if positive else _NAMES.get(name, name)
    return (
        f"{_AVERAGES[average]} {_NAMES.get(name, name)}"
        if average in _AVERAGES
        else _NAMES.get(metric, metric)
    )


def base_name(source: str) -> str:
    """A base model without where it comes from."""
    return source.rsplit(":", 1)[-1].rstrip("/").rsplit("/", 1)[-1]


def short(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def between(low: float, high: float, digits: int = 3) -> str:
    return f"{low:.{digits}f} to {high:.{digits}f}"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return (
        names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
    )


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}\u00a0%"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def setting(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def compact(number: int | None) -> str:
    """Parameters as people say them: 23.4 M."""
    if number is None:
        return ""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return (
        f"{seconds:.0f} s"
        if seconds < 600
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


class StoredRun(Protocol):
    """A run of a study on disk, as `medray.study` keeps it."""

    @property
    def folder(self) -> Path: ...

    def records(self) -> list[TrialRecord]: ...

    def history(self, trial: str) -> list[Evaluation]: ...

    def leaderboard(self) -> Leaderboard: ...

    def analysis(self) -> Analysis | None: ...


def gather(run: StoredRun) -> StudyData:
    board, records, folder = run.leaderboard(), run.records(), run.folder
    asked = load_study([folder / SETTINGS])
    asked = StudyConfig.model_validate(public_settings(asked))  # runs of before kept secrets
    manifest, held = _winner(folder, board)
    found, told = run.analysis(), None
    if manifest and held:
        test = card.test_record(board, board.best, found) if board.best.test else None
        calibration = found.best.calibration if found else AS_IT_IS
        told = card.describe(
            manifest,
            checkpoint.content_id(held),
            test,
            leaderboard.merge_of(board.best, board.metric),
            calibration,
        )
    return StudyData(
        config=asked,
        settings=redact((folder / SETTINGS).read_text(encoding="utf-8")),
        run=f"{asked.storage_path.rstrip('/')}/{asked.name}/{folder.name}",
        board=board,
        records=records,
        histories={record.trial: run.history(record.trial) for record in records},
        winner=told,
        validation=_json(held / "metrics.json") if held else {},
        audit=_audit(folder, records),
        analysis=found,
        samples=_json(folder / SAMPLES),
    )


def _winner(folder: Path, board: Leaderboard) -> tuple[Manifest | None, Path | None]:
    """The winner's checkpoint below this run, wherever the run lies now."""
    if board.best.checkpoint is None:
        return None, None
    kept = Path(board.best.checkpoint)
    found = folder / "trials" / kept.parents[1].name / "checkpoints" / kept.name
    return (checkpoint.read(found), found) if (found / MANIFEST).exists() else (None, None)


def _audit(folder: Path, records: Sequence[TrialRecord]) -> dict[str, Any]:
    """The data's audit is the same for all trials, but each knows the lengths for its own base
    model only."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for record in records:
        path = next((folder / "trials" / record.trial / "checkpoints").glob("*/audit.json"), None)
        if path is None or record.base in seen:
            continue
        seen.add(record.base)
        held = _json(path)
        found = found or held
        found["tokens"] = {**found.get("tokens", {}), **held.get("tokens", {})}
    return found


def _json(path: Path) -> dict[str, Any]:
    held: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return held
