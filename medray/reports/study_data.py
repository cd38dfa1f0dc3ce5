"""The plain data of one run that a report shows, and functions that put numbers into words."""

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
    "train.samples_per_step": "rows per step",
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
    run: str  # the path of its folder, relative to the storage path of the study
    board: Leaderboard
    records: Sequence[TrialRecord]
    histories: Mapping[str, Sequence[Evaluation]]  # by trial
    winner: Facts | None = None  # None if its checkpoint is missing
    validation: Mapping[str, Any] = field(default_factory=dict)  # metrics.json of the winner
    audit: Mapping[str, Any] = field(default_factory=dict)
    analysis: Analysis | None = None  # None for runs of versions without it
    # The user's own prompts, and the answers to them by name of the model.
    samples: Mapping[str, Any] = field(default_factory=dict)

    @property
    def day(self) -> str:
        """Return the date of the first trial's start."""
        starts = [record.started_at for record in self.records if record.started_at is not None]
        return f"{datetime.fromtimestamp(min(starts), UTC):%-d %B %Y}" if starts else ""

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
        """Return the number of the entry's base model, which sets its color; None for a
        reference."""
        if entry.kind == "reference":
            return None
        bases = {record.trial: record.base for record in self.records}
        return bases.get(entry.name, entry.base or 0)


def axis_name(path: str) -> str:
    return _AXES.get(path, path)


def metric_name(metric: str, positive: str | None) -> str:
    """Return a metric's name in words: `f1_binary` is `F1 for cancer` if cancer is positive."""
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
    """Return a base model's name without its source."""
    return source.rsplit(":", 1)[-1].rstrip("/").rsplit("/", 1)[-1]


def short(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def with_sign(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def between(low: float, high: float, digits: int = 3) -> str:
    return f"{low:.{digits}f} to {high:.{digits}f}"


def join_names(names: Sequence[str]) -> str:
    """Join names as in `a, b and c`."""
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
    """Format a number of parameters, as in 23.4 M."""
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
    """The members of a stored run that a report reads; `medray.study.run.Run` has them."""

    @property
    def folder(self) -> Path: ...

    def records(self) -> list[TrialRecord]: ...

    def history(self, trial: str) -> list[Evaluation]: ...

    def leaderboard(self) -> Leaderboard: ...

    def analysis(self) -> Analysis | None: ...


def gather(run: StoredRun) -> StudyData:
    board, records, folder = run.leaderboard(), run.records(), run.folder
    study = load_study([folder / SETTINGS])
    study = StudyConfig.model_validate(public_settings(study))  # older runs stored secrets
    manifest, winner_dir = _winner(folder, board)
    analysis, facts = run.analysis(), None
    if manifest and winner_dir:
        test = card.test_record(board, board.best, analysis) if board.best.test else None
        calibration = analysis.best.calibration if analysis else AS_IT_IS
        facts = card.describe(
            manifest,
            checkpoint.content_id(winner_dir),
            test,
            leaderboard.merge_of(board.best, board.metric),
            calibration,
        )
    return StudyData(
        config=study,
        settings=redact((folder / SETTINGS).read_text(encoding="utf-8")),
        run=f"{study.storage_path.rstrip('/')}/{study.name}/{folder.name}",
        board=board,
        records=records,
        histories={record.trial: run.history(record.trial) for record in records},
        winner=facts,
        validation=_json(winner_dir / "metrics.json") if winner_dir else {},
        audit=_audit(folder, records),
        analysis=analysis,
        samples=_json(folder / SAMPLES),
    )


def _winner(folder: Path, board: Leaderboard) -> tuple[Manifest | None, Path | None]:
    """Return the winner's manifest and checkpoint within this run, which may have moved."""
    if board.best.checkpoint is None:
        return None, None
    original = Path(board.best.checkpoint)
    path = folder / "trials" / original.parents[1].name / "checkpoints" / original.name
    return (checkpoint.read(path), path) if (path / MANIFEST).exists() else (None, None)


def _audit(folder: Path, records: Sequence[TrialRecord]) -> dict[str, Any]:
    """Merge the audits of the base models, which differ only in the lengths of the texts in
    tokens."""
    merged_audit: dict[str, Any] = {}
    bases: set[int] = set()
    for record in records:
        path = next((folder / "trials" / record.trial / "checkpoints").glob("*/audit.json"), None)
        if path is None or record.base in bases:
            continue
        bases.add(record.base)
        audit = _json(path)
        merged_audit = merged_audit or audit
        merged_audit["tokens"] = {**merged_audit.get("tokens", {}), **audit.get("tokens", {})}
    return merged_audit


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return content
