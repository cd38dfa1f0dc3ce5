"""Between Ray Tune and the search: one Tuner a study, whose searcher, scheduler and callback all ask the same pure `Search`."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune import PlacementGroupFactory
from ray.tune.callback import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from medray.config import StudyConfig, TrialConfig
from medray.errors import MedrayError, TrialError
from medray.records import TrialRecord
from medray.training.worker import FAILED, VALIDATION, Assignment
from medray.tuning import trial as trials
from medray.tuning.placement import Placement
from medray.tuning.repeats import config_of
from medray.tuning.runs import Run, slugs
from medray.tuning.search import Plan, Proposal

log = logging.getLogger(__name__)
Row = dict[str, Any]
_PATIENCE_S = 30.0


class Watcher(Protocol):
    """Whoever shows how the search goes."""

    def planned(self, num_trials: int) -> None: ...

    def begun(self, record: TrialRecord) -> None: ...

    def told(self, record: TrialRecord, row: Row) -> None: ...

    def ended(self, record: TrialRecord) -> None: ...


class Session:
    """One search as it runs: which trial is what, and what is still to be done."""

    def __init__(
        self,
        study: StudyConfig,
        run: Run,
        search: Plan,
        *,
        material: Callable[[TrialConfig], Path],
        placement: Callable[[TrialConfig], Placement],
        watcher: Watcher,
        retry_failed: bool = False,
    ) -> None:
        self.study, self.run, self.search = study, run, search
        self.material, self.placement, self.watcher = material, placement, watcher
        self.names = slugs([base.source for base in study.base_models])
        self.on_start: Callable[[], None] = lambda: None
        self.records: dict[str, TrialRecord] = {}
        self.stopped: set[str] = set()
        self._unfinished = self._replay(retry_failed)

    def next(self) -> dict[str, Any] | None:
        """What Tune is to run next: first what an earlier process left, then what the search proposes."""
        while record := self._unfinished.pop(0) if self._unfinished else self._proposed():
            self._keep(record)
            self.watcher.planned(self.search.num_trials)
            try:
                return self._assigned(record)
            except MedrayError as err:  # settings that exclude each other, or data that they cannot read
                self.ended(record.trial, error=str(err))
        return None

    def _proposed(self) -> TrialRecord | None:
        proposal = self.search.next()
        if proposal is None:
            return None
        record = TrialRecord(
            trial=proposal.name or f"{self.names[proposal.base]}-{proposal.number:03d}",
            base_model=self.study.base_models[proposal.base].source,
            base=proposal.base,
            number=proposal.number,
            settings=proposal.settings,
            of=proposal.of,
            seed=proposal.seed,
            fold=proposal.fold,
        )
        self.search.begin(record.trial, proposal)
        return record

    def _assigned(self, record: TrialRecord) -> dict[str, Any]:
        self._keep(record.model_copy(update={"started_at": time.time(), "first_step_at": None}))
        config = config_of(self.study, record)
        placement = self.placement(config)
        resources = config.resources.model_copy(update={"cpus_per_worker": int(placement.cpus) or 1, "gpus_per_worker": placement.gpus})
        config = config.model_copy(update={"resources": resources})
        folder = self.run.trial_dir(record.trial)
        assignment = Assignment(record.trial, config.model_dump(mode="json"), str(self.material(config)), str(folder))
        return {
            "assignment": assignment.as_dict(),
            "launcher": placement.launcher,
            "num_workers": placement.num_workers,
            "placement": config.resources.placement,
            "cpus": placement.cpus,
            "gpus": placement.gpus,
            "max_failures": config.resources.max_failures,
            "storage_path": str(self.run.folder / "train"),
        }

    def told(self, trial: str, row: Row) -> bool:
        """An evaluation; whether the trial goes on."""
        self.on_start()
        record = self.records[trial]
        if FAILED in row:
            self._keep(record.model_copy(update={"status": "failed", "error": row[FAILED]}))
            return True
        if record.first_step_at is None:
            known = {name: row[name] for name in ("first_step_at", "num_parameters", "num_trainable")}
            record = self._keep(record.model_copy(update=known))
        goes_on = self.search.observe(trial, row["epochs"], row[VALIDATION + self.search.metric])
        self.run.write_spent(self.search.seconds)
        self.watcher.told(record, row)
        if goes_on or row["is_last"]:
            return True
        self.stopped.add(trial)
        # Written now: a study that is killed before the trial has ended must not train it on.
        self._keep(record.model_copy(update={"status": "stopped"}))
        return False

    def begun(self, trial: str) -> None:
        self.watcher.begun(self.records[trial])

    def ended(self, trial: str, error: str | None = None) -> None:
        record = self.records[trial]
        error = error or record.error
        status = "failed" if error else "stopped" if trial in self.stopped else "finished"
        record = self._keep(record.model_copy(update={"status": status, "error": error, "ended_at": time.time()}))
        self.search.complete(trial, record.settings, failed=error is not None)
        self.watcher.ended(record)

    def _keep(self, record: TrialRecord) -> TrialRecord:
        self.records[record.trial] = record
        self.run.write(record)
        return record

    def _replay(self, retry_failed: bool) -> list[TrialRecord]:
        """Tell the search what an earlier process saw; the trials that it did not finish come back."""
        unfinished = []
        self.search.spent_s = self.run.spent_s()
        for record in filter(self.search.owns, self.run.records()):
            if retry_failed and record.status == "failed":
                record = record.model_copy(update={"status": "running", "error": None, "ended_at": None})
            proposal = Proposal(record.base, record.number, record.settings, record.of, record.seed, record.fold)
            self.search.recall(proposal)
            self.search.begin(record.trial, proposal)
            for row in self.run.history(record.trial):
                self.search.observe(record.trial, row["epochs"], row["metrics"][self.search.metric])
            self.records[record.trial] = record
            if record.status == "running":
                unfinished.append(record)
            else:
                self.search.complete(record.trial, record.settings, failed=record.status == "failed")
        return unfinished


def run(session: Session, placements: Sequence[Placement]) -> None:
    """Run trials until the search has no more."""
    session.search.start()
    num_at_once = min(placement.num_at_once for placement in placements)
    launcher = "inline" if all(placement.launcher == "inline" for placement in placements) else "train"
    tuner = tune.Tuner(
        tune.with_resources(_start, _resources),
        tune_config=tune.TuneConfig(
            search_alg=_Searcher(session),
            scheduler=_Scheduler(session),
            num_samples=-1,
            max_concurrent_trials=num_at_once,
            # A driver that Ray Train still holds cannot be used again: Tune would lose the trial that is given to it without a word.
            reuse_actors=launcher == "inline",
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{sum(1 for _ in session.run.folder.glob('tune-*')) + 1}",  # a resumed study has several
            storage_path=str(session.run.folder),
            callbacks=[_Callback(session)],
            failure_config=tune.FailureConfig(max_failures=session.study.resources.max_failures),
            verbose=0,
        ),
    )
    started = threading.Event()
    session.on_start = started.set
    least = min(placements, key=lambda placement: placement.least_workers * placement.cpus)
    threading.Thread(target=_tell_waiting, args=(started, least), daemon=True).start()
    try:
        tuner.fit()
    finally:
        started.set()
    lost = [record.trial for record in session.records.values() if record.status == "running"]
    if lost:
        raise TrialError(f"{', '.join(lost)}: did not end, and nobody says why; `medray study --resume` goes on")


def _tell_waiting(started: threading.Event, placement: Placement) -> None:
    """A study that waits for others' CPUs or GPUs says so: Tune and Train would wait in silence."""
    free = ray.available_resources()  # before the first trial takes any
    cpus, gpus = placement.least_workers * placement.cpus, placement.least_workers * placement.gpus
    if free.get("CPU", 0) >= cpus and free.get("GPU", 0) >= gpus:
        return
    while not started.wait(_PATIENCE_S):
        log.warning(
            "no trial has reported yet: one takes %g CPU(s) and %g GPU(s), and %g and %g were free at the start; other jobs hold the rest",
            cpus,
            gpus,
            free.get("CPU", 0),
            free.get("GPU", 0),
        )


def _start(config: dict[str, Any]) -> None:
    (trials.inline if config["launcher"] == "inline" else trials.driven)(config)


def _resources(config: dict[str, Any]) -> PlacementGroupFactory:
    if config["launcher"] == "inline":
        return PlacementGroupFactory([{"CPU": config["cpus"], **({"GPU": config["gpus"]} if config["gpus"] else {})}])
    # A driver that held a CPU would take it from the workers that it waits for.
    return PlacementGroupFactory([{"CPU": 0, "node:__internal_head__": 0.001}])


class _Shell:
    """What the search decides lies in the study's run; Tune's own pickles of these hold nothing."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_Shell, Searcher):
    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.trials: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        found = self.session.next()
        return Searcher.FINISHED if found is None else found

    def on_trial_complete(self, trial_id: str, result: Row | None = None, error: bool = False) -> None:
        """The callback hears of it with more detail."""

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(b"")

    def restore(self, checkpoint_path: str) -> None:
        """A study goes on from its run's records."""


class _Scheduler(_Shell, FIFOScheduler):
    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: Row) -> str:
        return TrialScheduler.CONTINUE if self.session.told(_name(trial), result) else TrialScheduler.STOP


class _Callback(_Shell, Callback):
    def __init__(self, session: Session) -> None:
        self.session = session

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.session.begun(_name(trial))

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.session.ended(_name(trial))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        error = trial.get_pickled_error() or trial.get_error()
        how = "it raised" if isinstance(error, ray.exceptions.RayTaskError) else "its process died:"
        self.session.ended(_name(trial), error=f"{how} {str(error).strip().splitlines()[-1]}")


def _name(trial: TuneTrial) -> str:
    name: str = trial.config["assignment"]["trial"]
    return name
