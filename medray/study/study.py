"""A study in five stages: materials, search, repeats, final test, conclusion. Then the winner is
published."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from medray.config.study import StudyConfig
from medray.config.trial import TrialConfig
from medray.errors import ArtifactError, TrialError
from medray.evaluation import leaderboard
from medray.evaluation.analysis import Analysis
from medray.evaluation.calibration import is_multi_label
from medray.evaluation.leaderboard import Contender, Entry, Leaderboard
from medray.records import TrialRecord
from medray.registry.release import Release
from medray.runtime.cluster import Cluster
from medray.study import preflight, publish, ray_tune, repeats
from medray.study.candidates import Caller
from medray.study.final_test import Finalist, Verdict, final_test
from medray.study.guesses import first_guesses
from medray.study.materials import Materials
from medray.study.placement import Placement, place
from medray.study.repeats import Repeats
from medray.study.run import Conclusion, Run
from medray.study.search import Plan, Search, most_trials
from medray.study.services import DecisionService
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
    analysis: Analysis | None  # None in a run of an early medray
    release: Release | None  # of the winner
    refusal: str | None = None  # why the winner was not published, where the study requires it


def run(
    study: StudyConfig,
    cluster: Cluster,
    run: Run,
    *,
    watcher: Watcher,
    launch: Launch = ray_tune.launch,
    call: Caller = ray_tune.call,
    retry_failed: bool = False,
) -> Outcome:
    """Run the rest of a study on a cluster. `launch` runs its trials there, and `call` runs the
    predictions of its final test."""
    with run.lock():
        if retry_failed and any(record.status == "failed" for record in run.records()):
            run.reopen()
        if not run.is_finished():
            if len(cluster.nodes) > 1:
                preflight.check_folder_on_nodes(run.folder)
            configs = [study.trial(base) for base in study.base_models]
            place_trial = partial(
                _place,
                cluster=cluster,
                num_trials=most_trials(study),
                per_gpu=_trials_per_gpu(configs, cluster),
            )
            placements = list(map(place_trial, configs))
            materials = prepare(study, run, watcher)
            services = _services(study, run, materials, watcher)
            plan = Search(
                study,
                metric(study),
                guesses=first_guesses(study, run),
                steps_per_epoch=list(map(materials.steps_per_epoch, configs)),
            )

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
            watcher.stage(f"predicting the test rows with {len(finalists)} finalist(s)")
            largest = max(placements, key=lambda placement: (placement.gpus, placement.cpus))
            log_dir = run.storage_dir / "test_log"
            verdict = final_test(study, finalists, materials, largest, call, log_dir, services)
            run.finish(conclude(study, run, entries, finalists, verdict, materials.task))
    board = run.leaderboard()
    _check_every_base_model(study, board)
    refusal = publish.refusal(study, board)
    release = None
    if study.publish and not refusal:
        watcher.stage("publishing the winner")
        release = publish.publish_winner(study, run, board)
    return Outcome(run, board, run.analysis(), release, refusal)


def metric(study: StudyConfig) -> str:
    """Return the validation metric that the study ranks by."""
    name: str = study.task.model_dump()["metric"]
    return name


def prepare(study: StudyConfig, run: Run, watcher: Watcher) -> Materials:
    """Read the data and tokenize it for each base model. An unreadable base model fails its own
    trials, not the study."""
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


def _services(
    study: StudyConfig, run: Run, materials: Materials, watcher: Watcher
) -> list[DecisionService]:
    """Return the study's services, each of which has answered about a first row."""
    services = [
        DecisionService(reference, run.storage_dir / "services") for reference in study.references
    ]
    for service in services:
        watcher.stage(f"asking {service.config.url} about the texts of {study.name}")
        service.check(materials.task, materials.dataset(study.data).validation)
    return services


def search(
    study: StudyConfig, run: Run, plan: Search, train: Callable[[Plan], None]
) -> list[Entry]:
    """Run the trials of the search and return each at its best evaluation."""
    train(plan)
    if plan.has_failed:
        reasons = Counter(record.error for record in run.records() if record.status == "failed")
        errors = "; ".join(f"{number} x {reason}" for reason, number in reasons.most_common(3))
        raise TrialError(
            f"study {study.name}: {len(plan.failures)} trials failed, search.max_failed allows "
            f"{plan.most_failures}: {errors}."
            " The study started no further trial and evaluated none; remove the cause and rerun "
            "with --resume --retry-failed,"
            " or allow more failures with --resume search.max_failed=N"
        )
    return run.entries(plan.metric, lambda record: record.of is None)


def repeat(
    study: StudyConfig,
    run: Run,
    entries: Sequence[Entry],
    plan: Search,
    train: Callable[[Plan], None],
) -> list[Finalist]:
    """Choose the finalists and train each with the other seeds or folds."""
    best = _choose(study, run, entries, plan.metric)
    records = {record.trial: record for record in run.records()}
    proposals = repeats.proposals(study, best, records)
    if not proposals:
        return [Finalist(entry) for entry in best]
    limits = {
        entry.name: run.history(entry.name)[-1].epochs
        for entry in best
        if entry.status == "stopped"
    }
    train(Repeats(proposals, limits, plan.metric, num_before=plan.num_trials))
    finalist_of = {proposal.name: proposal.of for proposal in proposals}
    usable: dict[str | None, list[Entry]] = {entry.name: [] for entry in best}
    for entry in run.entries(plan.metric, lambda record: record.trial in finalist_of):
        if entry.status != "failed" and entry.checkpoint:
            usable[finalist_of[entry.name]].append(entry)
        elif study.data.split.is_pooled:
            raise TrialError(
                f"study {study.name}: {entry.name} failed, and a pooled metric needs every fold: "
                f"{entry.error}"
            )
    return [Finalist(entry, tuple(usable[entry.name])) for entry in best]


def _choose(study: StudyConfig, run: Run, entries: Sequence[Entry], metric: str) -> list[Entry]:
    """Return the best trials of each base model that still have a checkpoint."""
    able = [entry for entry in entries if entry.checkpoint or not entry.validation]
    if len(able) < len(entries):
        log.warning(
            "%d trial(s) cannot be finalists: `medray gc` removed their checkpoints",
            len(entries) - len(able),
        )
    best = leaderboard.finalists(able, metric, study.search.num_finalists)
    if not best:
        errors = "; ".join(
            f"{record.trial}: {record.error}" for record in run.records() if record.error
        )
        raise TrialError(
            f"study {study.name}: nothing to rank: {errors or 'no trial was evaluated'}"
        )
    return best


def conclude(
    study: StudyConfig,
    run: Run,
    entries: Sequence[Entry],
    finalists: Sequence[Finalist],
    verdict: Verdict,
    task: Task,
) -> Conclusion:
    """Rank the trials and the references. A finalist's analysis is that of the seed to publish."""
    candidates = [
        leaderboard.pool_seeds(_in_order(verdict.candidates, finalist.names), metric(study))
        for finalist in finalists
    ]
    failures = run.entries(
        metric(study), lambda record: record.of is not None and record.status == "failed"
    )
    tie, split = study.search.tie, study.data.split
    board = leaderboard.conclude(
        study.name,
        metric(study),
        [*entries, *failures],
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
    prompts = [sample.text for sample in tasks.task_options(study.task).samples()]
    answers = {names.get(name, name): texts for name, texts in verdict.samples.items()}
    return Conclusion(board, analysis, {"prompts": prompts, "answers": answers} if prompts else {})


def _in_order(candidates: Sequence[Contender], names: Sequence[str]) -> list[Contender]:
    """Return the candidates in the order of the names. A fold's model has no candidate of its own:
    its predictions are pooled under its finalist."""
    by_name = {candidate.entry.name: candidate for candidate in candidates}
    return [by_name[name] for name in names if name in by_name]


def _place(
    config: TrialConfig, cluster: Cluster, num_trials: int, per_gpu: Mapping[str, int]
) -> Placement:
    most = per_gpu.get(config.model.source, 1)
    return place(config.resources, cluster, num_trials, per_gpu=most)


def _trials_per_gpu(configs: Sequence[TrialConfig], cluster: Cluster) -> dict[str, int]:
    """Return how many trials of each base model share a GPU."""
    if not cluster.gpus:
        return {}
    from medray.study.estimate import trials_per_gpu  # takes a step without contents

    return {config.model.source: trials_per_gpu(config, cluster) for config in configs}


def _check_every_base_model(study: StudyConfig, board: Leaderboard) -> None:
    """Raise where a base model has no trial, or only failed ones: the study did not compare it."""
    for number, base in enumerate(study.base_models):
        trials = [entry for entry in board.entries if entry.base == number]
        if not trials:
            raise TrialError(
                f"study {study.name}: the budget ended before {base.source} had a trial; the "
                "leaderboard ranks the others"
            )
        if all(entry.status == "failed" for entry in trials):
            raise TrialError(
                f"study {study.name}: every trial of {base.source} failed ({trials[0].error}); the "
                "leaderboard ranks the others"
            )
