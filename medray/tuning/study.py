"""A study, start to end: prepare once, search, rank, judge on test rows, write the leaderboard, publish the winner."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from medray import storage
from medray.answering import is_multi_label
from medray.checkpoint import MANIFEST
from medray.config import StudyConfig, TrialConfig
from medray.data import dataset as datasets
from medray.data.audit import Audit
from medray.data.dataset import Dataset
from medray.errors import TrialError
from medray.models import sources
from medray.models.build import load_tokenizer
from medray.registry import Release
from medray.runtime import Cluster, free_leaked_groups
from medray.selection import analysis, leaderboard, tables
from medray.selection.analysis import Analysis
from medray.selection.leaderboard import Leaderboard
from medray.tasks import base as tasks
from medray.training.material import gather, look
from medray.tuning import tuner, winners
from medray.tuning.judge import judge
from medray.tuning.placement import Placement, place
from medray.tuning.runs import ANALYSIS, LEADERBOARD, Run
from medray.tuning.search import Search
from medray.tuning.tuner import Session, Watcher

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    run: Run
    board: Leaderboard
    analysis: Analysis | None  # runs of before have none
    release: Release | None  # what the winner was published as


def run(study: StudyConfig, cluster: Cluster, here: Run, *, watcher: Watcher, on_audit: Callable[[Audit], None]) -> Outcome:
    """Run what of the study is not done yet, on a cluster that is there."""
    if not (here.folder / LEADERBOARD).exists():
        board, found = _search(study, cluster, here, watcher, on_audit)
        _write(board, found, here)
    board = here.leaderboard()
    _every_base_model_counts(study, board)
    return Outcome(here, board, here.analysis(), winners.of_study(study, here, board) if study.publish else None)


def metric(study: StudyConfig) -> str:
    """The validation figure that the study ranks by."""
    name: str = study.task.model_dump()["metric"]
    return name


def audit(study: StudyConfig) -> Iterator[Audit]:
    """The audit of the study's data for each base model's tokenizer; nothing is trained."""
    dataset = datasets.load(study.data)
    task = tasks.fit(study.task, dataset.label_sets())
    for base in study.base_models:
        yield look(dataset, task, base.source, load_tokenizer(sources.resolve(base.source, base.revision).path))


def _search(
    study: StudyConfig, cluster: Cluster, here: Run, watcher: Watcher, on_audit: Callable[[Audit], None]
) -> tuple[Leaderboard, Analysis]:
    freed = free_leaked_groups()
    if freed:
        log.warning("removed %d placement group(s) that ended jobs had left behind", freed)
    search = Search(study, metric(study))

    def placement(config: TrialConfig) -> Placement:
        return place(config.resources, cluster, search.num_trials)

    placements = [placement(study.trial(base)) for base in study.base_models]
    dataset = datasets.load(study.data)
    task = tasks.fit(study.task, dataset.label_sets())
    materials = _Materials(study, dataset, here.storage_dir / "prepared", on_audit)
    for base in study.base_models:
        materials.path(study.trial(base))
    session = Session(study, here, search, material=materials.path, placement=placement, watcher=watcher)
    tuner.run(session, placements)

    records = here.records()
    entries = [leaderboard.entry_of(record, here.history(record.trial), search.metric) for record in records]
    entries = [replace(entry, checkpoint=_checkpoint(here, entry.name, entry.step)) for entry in entries]
    chosen = leaderboard.finalists(entries, search.metric, study.search.num_finalists)
    if not chosen:
        errors = "; ".join(f"{record.trial}: {record.error}" for record in records if record.error) or "no trial was evaluated"
        raise TrialError(f"study {study.name}: nothing to rank: {errors}")
    largest = max(placements, key=lambda found: (found.gpus, found.cpus))
    log_dir, caller = here.storage_dir / "test_log", f"study {study.name}"
    bases = [study.trial(base) for base in study.base_models]
    verdict = judge(chosen, task, dataset, largest, log_dir, calibration=study.calibration, caller=caller, bases=bases)
    board = leaderboard.conclude(study.name, search.metric, entries, verdict.candidates, verdict.references, verdict.num_openings)
    models = sorted(verdict.analyses, key=lambda found: found.name != board.winner)
    return board, Analysis(study.name, task.labels, is_multi_label(task), board.winner, tuple(models))


class _Materials:
    """What trials share, made when the first of them asks: once for each base model, data and task."""

    def __init__(self, study: StudyConfig, dataset: Dataset, folder: Path, on_audit: Callable[[Audit], None]) -> None:
        self.study, self.dataset, self.folder, self.on_audit = study, dataset, folder, on_audit
        self._made: dict[str, Path] = {}

    def path(self, config: TrialConfig) -> Path:
        key = storage.hash_text(
            [config.model.source, str(config.model.revision), config.data.model_dump_json(), config.task.model_dump_json()]
        )
        if key not in self._made:
            dataset = self.dataset if config.data == self.study.data else datasets.load(config.data)  # a row limit of its own
            task = tasks.fit(config.task, dataset.label_sets())
            self._made[key] = gather(config, dataset, task, self.folder, self.on_audit).path
        return self._made[key]


def _checkpoint(here: Run, trial: str, step: int | None) -> str | None:
    if step is None:
        return None
    folder = here.checkpoint(trial, step)
    return str(folder) if (folder / MANIFEST).exists() else None


def _write(board: Leaderboard, found: Analysis, here: Run) -> None:
    histories = {record.trial: here.history(record.trial) for record in here.records()}
    storage.write(here.folder / "history.csv", tables.to_csv(tables.history_rows(histories)).encode())
    storage.write(here.folder / "leaderboard.csv", tables.to_csv(tables.rows(board)).encode())
    storage.write(here.folder / "leaderboard.md", tables.to_markdown(board, found).encode())
    storage.write(here.folder / ANALYSIS, analysis.to_json(found))
    storage.write(here.folder / LEADERBOARD, tables.to_json(board).encode())  # last: it says that the study has ended


def _every_base_model_counts(study: StudyConfig, board: Leaderboard) -> None:
    """A base model whose trials all failed was not compared: the study did not do what it was asked."""
    for number, base in enumerate(study.base_models):
        tried = [entry for entry in board.entries if entry.base == number]
        if not tried:
            raise TrialError(
                f"study {study.name}: the budget ended before {base.source} was tried; the others are ranked in its leaderboard"
            )
        if all(entry.status == "failed" for entry in tried):
            raise TrialError(
                f"study {study.name}: every trial of {base.source} failed ({tried[0].error}); the others are ranked in its leaderboard"
            )
