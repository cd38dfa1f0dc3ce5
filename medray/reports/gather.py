"""From a run's folder to the plain data of its report; what an older run does not have stays out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from medray.config.load import load_study, public_settings
from medray.config.study import StudyConfig
from medray.evaluation import leaderboard
from medray.evaluation.analysis import Analysis
from medray.evaluation.leaderboard import Leaderboard
from medray.records import AS_IT_IS, TrialRecord
from medray.redaction import redact
from medray.registry import card
from medray.reports.study_data import StudyData
from medray.storage import checkpoint
from medray.storage.checkpoint import MANIFEST, Manifest

SETTINGS = "study.yaml"
SAMPLES = "samples.json"


class HeldRun(Protocol):
    """A run of a study on disk, as `tuning` knows it."""

    @property
    def folder(self) -> Path: ...

    def records(self) -> list[TrialRecord]: ...

    def history(self, trial: str) -> list[dict[str, Any]]: ...

    def leaderboard(self) -> Leaderboard: ...

    def analysis(self) -> Analysis | None: ...


def gather(run: HeldRun) -> StudyData:
    board, records, folder = run.leaderboard(), run.records(), run.folder
    asked = load_study([folder / SETTINGS])
    asked = StudyConfig.model_validate(public_settings(asked))  # runs of before kept secrets
    manifest, held = _winner(folder, board)
    found, told = run.analysis(), None
    if manifest and held:
        test = card.test_record(board, board.best, found) if board.best.test else None
        calibration = found.best.calibration if found else AS_IT_IS
        told = card.of(manifest, checkpoint.content_id(held), test, leaderboard.merge_of(board.best, board.metric), calibration)
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
    """The data's audit is the same for all trials, but each knows the lengths for its own base model only."""
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
