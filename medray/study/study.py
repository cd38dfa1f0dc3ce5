"""A study in five stages: materials, search, repeat, final test, conclude. Then its winner is
published."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from medray.config.study import StudyConfig, TrialConfig
from medray.errors import ArtifactError, TrialError
from medray.evaluation import leaderboard
from medray.evaluation.analysis import Analysis
from medray.evaluation.calibration import is_multi_label
from medray.evaluation.leaderboard import Contender, Entry, Leaderboard
from medray.records import TrialRecord
from medray.registry.release import Release
from medray.runtime.cluster import Cluster
from medray.study import preflight, publish, ray_tune, repeats
from medray.study.final_test import Call, Finalist, Verdict, final_test
from medray.study.materials import Materials
from medray.study.placement import Placement, place
from medray.study.repeats import Repeats
from medray.study.run import Conclusion, Run
from medray.study.search import Plan, Search
from medray.study.session import Session, Watcher
from medray.tasks.base import protocol as tasks
from medray.tasks.base.protocol import Task

log = logging.getLogger(__name__)


class Launch(Protocol):
    """Runs the trials of a session to their end, or until its disk is full."""

    def __call__(self, session: Session, placements: Sequence[Placement]) -> None: ...


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
    run: Run,
    *,
    watcher: Watcher,
    launch: Launch = ray_tune.launch,
    call: Call = ray_tune.call,
    retry_failed: bool = False,
) -> Outcome:
    """Do what is left of a study on a cluster: `launch` runs its trials there, and `call` the
    predictions of its final test."""
    with run.lock():
        if retry_failed and any(record.status == "failed" for record in run.records()):
            run.reopen()
        if not run.is_finished():
            if len(cluster.nodes) > 1:
                preflight.check_shared(run.folder)
            plan = Search(study, metric(study))
            place_trial = partial(_place, cluster=cluster, plan=plan)
            placements = [place_trial(study.trial(base)) for base in study.base_models]
            materials = prepare(study, run, watcher)

            def train(plan: Plan) -> None:
                """Run the trials of a plan to their end."""
                session = Session(
                    study,
                    run,
                    plan,
                    material=materials.prepared,
                    placement=place_trial,
                    watcher=watcher,
                    retry_failed=retry_failed,
                )
                watcher.stage("waiting for the first trial")
                plan.start()
                launch(session, placements)
                if session.full:
                    raise session.full

            entries = search(study, run, plan, train)
            finalists = repeat(study, run, entries, plan, train)
            watcher.stage(f"answering the test rows with {len(finalists)} finalist(s)")
            largest = max(placements, key=lambda placement: (placement.gpus, placement.cpus))
            verdict = final_test(
                study, finalists, materials, largest, call, run.storage_dir / "test_log"
            )
            run.finish(conclude(study, run, entries, finalists, verdict, materials.task))
    board = run.leaderboard()
    _check_every_base_model(study, board)
    withheld = publish.withheld(study, board)
    if study.publish and not withheld:
        watcher.stage("publishing the winner")
    release = publish.of_study(study, run, board) if study.publish and not withheld else None
    return Outcome(run, board, run.analysis(), release, withheld)


def metric(study: StudyConfig) -> str:
    """The validation figure that the study ranks by."""
    name: str = study.task.model_dump()["metric"]
    return name


def prepare(study: StudyConfig, run: Run, watcher: Watcher) -> Materials:
    """Read the data and tokenize it for each base model; one that cannot be read fails its trials,
    not the study."""
    watcher.stage("reading the data")
    materials = Materials(study, run.storage_dir / "prepared", watcher.audit)
    for number, base in enumerate(study.base_models):
        watcher.stage(f"tokenizing for {base.source}")
        try:
            materials.prepared(
                repeats.config_of(
                    study,
                    TrialRecord(
                        trial=base.source,
                        base_model=base.source,
                        base=number,
                        number=0,
                        settings={},
                    ),
                )
            )
        except ArtifactError as err:
            log.warning("base model %s: its trials will fail: %s", base.source, err)
    return materials


def search(
    study: StudyConfig, run: Run, plan: Search, train: Callable[[Plan], None]
) -> list[Entry]:
    """Run the trials of the search, and return each at its best evaluation."""
    train(plan)
    if plan.has_failed:
        reasons = Counter(record.error for record in run.records() if record.status == "failed")
        listed = "; ".join(f"{number} x {reason}" for reason, number in reasons.most_common(3))
        raise TrialError(
            f"study {study.name}: {len(plan.failed)} trials failed, search.max_failed allows "
            f"{plan.most_failed}: {listed}."
            " No further trial was started and nothing was judged; remove the cause and go on with "
            "--resume --retry-failed,"
            " or allow more with --resume search.max_failed=N"
        )
    return run.entries(plan.metric, lambda record: record.of is None)


def repeat(
    study: StudyConfig,
    run: Run,
    entries: Sequence[Entry],
    plan: Search,
    train: Callable[[Plan], None],
) -> list[Finalist]:
    """Choose the finalists, and train each with the other seeds or on the other folds."""
    chosen = _choose(study, run, entries, plan.metric)
    records = {record.trial: record for record in run.records()}
    proposals = repeats.proposals(study, chosen, records)
    if not proposals:
        return [Finalist(entry) for entry in chosen]
    limits = {
        entry.name: run.history(entry.name)[-1].epochs
        for entry in chosen
        if entry.status == "stopped"
    }
    train(Repeats(proposals, limits, plan.metric, num_before=plan.num_trials))
    finalist_of = {proposal.name: proposal.of for proposal in proposals}
    usable: dict[str | None, list[Entry]] = {entry.name: [] for entry in chosen}
    for entry in run.entries(plan.metric, lambda record: record.trial in finalist_of):
        if entry.status != "failed" and entry.checkpoint:
            usable[finalist_of[entry.name]].append(entry)
        elif study.data.split.is_pooled:
            raise TrialError(
                f"study {study.name}: {entry.name} failed, and a pooled figure needs every fold: "
                f"{entry.error}"
            )
    return [Finalist(entry, tuple(usable[entry.name])) for entry in chosen]


def _choose(study: StudyConfig, run: Run, entries: Sequence[Entry], metric: str) -> list[Entry]:
    """The best trials of each base model that still have a checkpoint."""
    able = [entry for entry in entries if entry.checkpoint or not entry.validation]
    if len(able) < len(entries):
        log.warning(
            "%d trial(s) have no checkpoint any more and cannot be finalists: `medray gc` was here",
            len(entries) - len(able),
        )
    chosen = leaderboard.finalists(able, metric, study.search.num_finalists)
    if not chosen:
        errors = "; ".join(
            f"{record.trial}: {record.error}" for record in run.records() if record.error
        )
        raise TrialError(
            f"study {study.name}: nothing to rank: {errors or 'no trial was evaluated'}"
        )
    return chosen


def conclude(
    study: StudyConfig,
    run: Run,
    entries: Sequence[Entry],
    finalists: Sequence[Finalist],
    verdict: Verdict,
    task: Task,
) -> Conclusion:
    """Rank the trials and the references; what lies behind the figures of each finalist is that of
    the seed that would be published."""
    candidates = [
        leaderboard.pool_seeds(_named(verdict.candidates, finalist.names), metric(study))
        for finalist in finalists
    ]
    failed = run.entries(
        metric(study), lambda record: record.of is not None and record.status == "failed"
    )
    tie, split = study.search.tie, study.data.split
    board = leaderboard.conclude(
        study.name,
        metric(study),
        [*entries, *failed],
        candidates,
        verdict.references,
        verdict.num_openings,
        num_folds=split.folds if split.is_pooled else 1,
        tie=None if tie == "best" else tie.parameters,
    )
    names = {
        entry.seeds.published if entry.seeds else entry.name: entry.name
        for entry in (candidate.entry for candidate in candidates)
    }
    models = [
        replace(model, name=names[model.name]) for model in verdict.analyses if model.name in names
    ]
    models.sort(key=lambda model: model.name != board.winner)
    analysis = (
        Analysis(study.name, task.labels, is_multi_label(task), board.winner, tuple(models))
        if models
        else None
    )
    prompts = [
        sample.text for sample in tasks.task_options(study.task).samples()
    ]  # texts of the user's own file
    answers = {names.get(name, name): texts for name, texts in verdict.samples.items()}
    return Conclusion(board, analysis, {"prompts": prompts, "answers": answers} if prompts else {})


def _named(candidates: Sequence[Contender], names: Sequence[str]) -> list[Contender]:
    """In the order of the names; a fold's model has none of its own, it is in its finalist's
    answers."""
    by_name = {candidate.entry.name: candidate for candidate in candidates}
    return [by_name[name] for name in names if name in by_name]


def _place(config: TrialConfig, cluster: Cluster, plan: Search) -> Placement:
    return place(config.resources, cluster, plan.num_trials)


def _check_every_base_model(study: StudyConfig, board: Leaderboard) -> None:
    """A base model whose trials all failed was not compared: the study did not do what was
    requested."""
    for number, base in enumerate(study.base_models):
        tried = [entry for entry in board.entries if entry.base == number]
        if not tried:
            raise TrialError(
                f"study {study.name}: the budget ended before {base.source} was tried; the others "
                "are ranked in its leaderboard"
            )
        if all(entry.status == "failed" for entry in tried):
            raise TrialError(
                f"study {study.name}: every trial of {base.source} failed ({tried[0].error}); the "
                "others are ranked in its leaderboard"
            )
