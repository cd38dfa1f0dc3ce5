"""A study, start to end: prepare once, search, rank, judge on test rows, write the leaderboard, publish the winner."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medray.config.study import DataConfig, StudyConfig, TrialConfig
from medray.data import dataset as datasets
from medray.data.audit import Audit
from medray.data.dataset import Bring, Dataset
from medray.errors import ArtifactError, TrialError
from medray.evaluation import analysis, leaderboard, tables
from medray.evaluation.analysis import Analysis
from medray.evaluation.leaderboard import Entry, Judged, Leaderboard
from medray.models import sources
from medray.models.build import load_tokenizer
from medray.records import TrialRecord
from medray.registry.answers import is_multi_label
from medray.registry.release import Release
from medray.runtime.cluster import Cluster, free_leaked_groups
from medray.storage import files
from medray.storage.checkpoint import MANIFEST
from medray.study import preflight, publish, ray_tune, repeats
from medray.study.final_test import Fold, judge
from medray.study.placement import Placement, place
from medray.study.repeats import Repeats
from medray.study.run import ANALYSIS, LEADERBOARD, SAMPLES, Run
from medray.study.search import Plan, Search
from medray.study.session import Session, Watcher
from medray.tasks.base import protocol as tasks
from medray.training.prepared import gather, look

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    run: Run
    board: Leaderboard
    analysis: Analysis | None  # runs of before have none
    release: Release | None  # what the winner was published as
    withheld: str | None = None  # why it was not published, where the study asks for it


def run(
    study: StudyConfig,
    cluster: Cluster,
    here: Run,
    *,
    watcher: Watcher,
    on_audit: Callable[[Audit], None],
    on_stage: Callable[[str], None] = lambda what: None,
    retry_failed: bool = False,
) -> Outcome:
    """Run what of the study is not done yet, on a cluster that is there."""
    with here.held():
        if retry_failed and any(record.status == "failed" for record in here.records()):
            here.reopen()
        if not (here.folder / LEADERBOARD).exists():
            if len(cluster.nodes) > 1:
                preflight.check_shared(here.folder)
            _write(_Search(study, cluster, here, watcher, on_audit, on_stage, retry_failed).judged(), here)
    board = here.leaderboard()
    _every_base_model_counts(study, board)
    withheld = publish.withheld(study, board)
    if study.publish and not withheld:
        on_stage("publishing the winner")
    release = publish.of_study(study, here, board) if study.publish and not withheld else None
    return Outcome(here, board, here.analysis(), release, withheld)


def metric(study: StudyConfig) -> str:
    """The validation figure that the study ranks by."""
    name: str = study.task.model_dump()["metric"]
    return name


def audit(study: StudyConfig) -> Iterator[Audit]:
    """The audit of the study's data for each base model's tokenizer; nothing is trained."""
    dataset = datasets.load(study.data, tasks.task_options(study.task).bring)
    task = tasks.fit(study.task, dataset.label_sets(), dataset.train)
    for base in study.base_models:
        yield look(dataset, task, base.source, load_tokenizer(sources.resolve(base.source, base.revision).path))


class _Search:
    """From settings to a leaderboard: the search, its finalists' repeats, and the last look."""

    def __init__(
        self,
        study: StudyConfig,
        cluster: Cluster,
        here: Run,
        watcher: Watcher,
        on_audit: Callable[[Audit], None],
        on_stage: Callable[[str], None],
        retry_failed: bool,
    ) -> None:
        freed = free_leaked_groups()
        if freed:
            log.warning("removed %d placement group(s) that ended jobs had left behind", freed)
        self.study, self.cluster, self.here, self.watcher, self.retry_failed = study, cluster, here, watcher, retry_failed
        self.search, self.on_stage = Search(study, metric(study)), on_stage
        self.placements = [self._placement(study.trial(base)) for base in study.base_models]
        self.materials = _Materials(here.storage_dir / "prepared", on_audit, tasks.task_options(study.task).bring)
        on_stage("reading the data")
        dataset = self.materials.dataset(study.data)
        self.task = tasks.fit(study.task, dataset.label_sets(), dataset.train)
        for number, base in enumerate(study.base_models):
            on_stage(f"tokenizing for {base.source}")
            try:
                self.materials.path(
                    repeats.config_of(study, TrialRecord(trial=base.source, base_model=base.source, base=number, number=0, settings={}))
                )
            except ArtifactError as err:
                log.warning("base model %s: its trials will fail: %s", base.source, err)

    def judged(self) -> "_Judged":
        self._train(self.search)
        if self.search.has_failed:
            raise TrialError(self._failures())
        metric = self.search.metric
        searched = self._entries(lambda record: record.of is None)
        able = [entry for entry in searched if entry.checkpoint or not entry.validation]
        if len(able) < len(searched):
            log.warning("%d trial(s) have no checkpoint any more and cannot be finalists: `medray gc` was here", len(searched) - len(able))
        finalists = leaderboard.finalists(able, metric, self.study.search.num_finalists)
        if not finalists:
            errors = "; ".join(f"{record.trial}: {record.error}" for record in self.here.records() if record.error)
            raise TrialError(f"study {self.study.name}: nothing to rank: {errors or 'no trial was evaluated'}")
        repeated = self._repeat(finalists)
        self.on_stage(f"answering the test rows with {len(finalists)} finalist(s)")
        largest = max(self.placements, key=lambda found: (found.gpus, found.cpus))
        log_dir, caller = self.here.storage_dir / "test_log", f"study {self.study.name}"
        verdict = judge(
            self._folds(finalists, repeated),
            self.task,
            largest,
            log_dir,
            calibration=self.study.calibration,
            caller=caller,
            bases=[self.study.trial(base) for base in self.study.base_models],
        )
        names = [[entry.name, *(found.name for found in repeated[entry.name])] for entry in finalists]
        candidates = [leaderboard.over_seeds(_named(verdict.candidates, seeds), metric) for seeds in names]
        failed = self._entries(lambda record: record.of is not None and record.status == "failed")
        tie = self.study.search.tie
        board = leaderboard.conclude(
            self.study.name,
            metric,
            [*searched, *failed],
            candidates,
            verdict.references,
            verdict.num_openings,
            num_folds=self.study.data.split.folds if self.study.data.split.is_pooled else 1,
            tie=None if tie == "best" else tie.parameters,
        )
        # What is told of a finalist beside its figures is told of the seed that would be published.
        published = {found.entry.seeds.published if found.entry.seeds else found.entry.name: found.entry.name for found in candidates}
        models = [replace(found, name=published[found.name]) for found in verdict.analyses if found.name in published]
        models.sort(key=lambda found: found.name != board.winner)
        found = Analysis(self.study.name, self.task.labels, is_multi_label(self.task), board.winner, tuple(models)) if models else None
        # Texts of the user's own file, and answers to them.
        prompts = [sample.text for sample in tasks.task_options(self.study.task).samples()]
        samples = {published.get(name, name): said for name, said in verdict.samples.items()}
        return _Judged(board, found, {"prompts": prompts, "answers": samples} if prompts else {})

    def _train(self, plan: Plan) -> None:
        session = Session(
            self.study,
            self.here,
            plan,
            material=self.materials.path,
            placement=self._placement,
            watcher=self.watcher,
            retry_failed=self.retry_failed,
        )
        self.on_stage("waiting for the first trial")
        ray_tune.run(session, self.placements)

    def _placement(self, config: TrialConfig) -> Placement:
        return place(config.resources, self.cluster, self.search.num_trials)

    def _repeat(self, finalists: Sequence[Entry]) -> dict[str, list[Entry]]:
        """The other seeds or folds of each finalist, trained and evaluated."""
        records = {record.trial: record for record in self.here.records()}
        proposals = repeats.planned(self.study, finalists, records)
        if proposals:
            stopped = {entry.name: self.here.history(entry.name)[-1]["epochs"] for entry in finalists if entry.status == "stopped"}
            self._train(Repeats(proposals, stopped, self.search.metric, num_before=self.search.num_trials))
        wanted = {proposal.name for proposal in proposals}
        found: dict[str, list[Entry]] = {entry.name: [] for entry in finalists}
        by_name = {record.trial: record for record in self.here.records()}
        for entry in self._entries(lambda record: record.trial in wanted):
            if entry.status != "failed" and entry.checkpoint:
                found[str(by_name[entry.name].of)].append(entry)
            elif self.study.data.split.is_pooled:
                raise TrialError(f"study {self.study.name}: {entry.name} failed, and a pooled figure needs every fold: {entry.error}")
        return found

    def _folds(self, finalists: Sequence[Entry], repeated: Mapping[str, list[Entry]]) -> list[Fold]:
        """What is judged on which rows: seeds all on the same, folds each on its own."""
        data = self.study.data
        if not data.split.is_pooled:
            flat = [found for entry in finalists for found in (entry, *repeated[entry.name])]
            return [Fold(self.materials.dataset(data), flat)]
        folds = []
        for number in range(data.split.folds):
            split = data.split.model_copy(update={"fold": number})
            chosen = [(entry, *repeated[entry.name])[number] for entry in finalists]
            folds.append(Fold(self.materials.dataset(data.model_copy(update={"split": split})), chosen))
        return folds

    def _entries(self, wanted: Callable[[TrialRecord], bool]) -> list[Entry]:
        here, metric = self.here, self.search.metric
        entries = [leaderboard.entry_of(record, here.history(record.trial), metric) for record in here.records() if wanted(record)]
        return [replace(entry, checkpoint=_checkpoint(here, entry.name, entry.step)) for entry in entries]

    def _failures(self) -> str:
        reasons = Counter(record.error for record in self.here.records() if record.status == "failed")
        listed = "; ".join(f"{number} x {reason}" for reason, number in reasons.most_common(3))
        return (
            f"study {self.study.name}: {len(self.search.failed)} trials failed, search.max_failed allows {self.search.most_failed}: {listed}."
            " No further trial was started and nothing was judged; remove the cause and go on with --resume --retry-failed,"
            " or allow more with --resume search.max_failed=N"
        )


def _named(judged: Sequence[Judged], names: Sequence[str]) -> list[Judged]:
    """In the order of the names; a fold's model has none of its own, it is in its finalist's answers."""
    by_name = {found.entry.name: found for found in judged}
    return [by_name[name] for name in names if name in by_name]


class _Materials:
    """What trials share, made when the first of them asks: once for each base model, data and task."""

    def __init__(self, folder: Path, on_audit: Callable[[Audit], None], bring: Bring) -> None:
        self.folder, self.on_audit, self._bring = folder, on_audit, bring
        self._made: dict[str, Path | ArtifactError] = {}
        self._datasets: dict[str, Dataset] = {}
        self._audited: set[str] = set()

    def dataset(self, data: DataConfig) -> Dataset:
        """Each split, fold and row limit once."""
        split = data.split.model_copy(update={"fold": data.split.fold or 0})
        key = data.model_copy(update={"split": split}).model_dump_json()
        if key not in self._datasets:
            self._datasets[key] = datasets.load(data, self._bring)
        return self._datasets[key]

    def path(self, config: TrialConfig) -> Path:
        key = files.hash_text(
            [config.model.source, str(config.model.revision), config.data.model_dump_json(), config.task.model_dump_json()]
        )
        if key not in self._made:
            dataset = self.dataset(config.data)
            task = tasks.fit(config.task, dataset.label_sets(), dataset.train)
            on_audit = (lambda audit: None) if config.model.source in self._audited else self.on_audit  # it is about all rows
            self._audited.add(config.model.source)
            try:
                self._made[key] = gather(config, dataset, task, self.folder, on_audit).path
            except ArtifactError as err:
                self._made[key] = err  # found once: each of its trials tells it
        found = self._made[key]
        if isinstance(found, ArtifactError):
            raise found
        return found


def _checkpoint(here: Run, trial: str, step: int | None) -> str | None:
    if step is None:
        return None
    folder = here.checkpoint(trial, step)
    return str(folder) if (folder / MANIFEST).exists() else None


@dataclass(frozen=True)
class _Judged:
    board: Leaderboard
    analysis: Analysis | None
    samples: Mapping[str, Any]


def _write(judged: _Judged, here: Run) -> None:
    board, found = judged.board, judged.analysis
    histories = {record.trial: here.history(record.trial) for record in here.records()}
    files.write(here.folder / "history.csv", tables.to_csv(tables.history_rows(histories)).encode())
    files.write(here.folder / "leaderboard.csv", tables.to_csv(tables.rows(board)).encode())
    files.write(here.folder / "leaderboard.md", tables.to_markdown(board, found).encode())
    if found:
        files.write(here.folder / ANALYSIS, analysis.to_json(found))
    if judged.samples:
        files.write(here.folder / SAMPLES, json.dumps(judged.samples, indent=1, ensure_ascii=False).encode())
    files.write(here.folder / LEADERBOARD, tables.to_json(board).encode())  # last: it says that the study has ended


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
