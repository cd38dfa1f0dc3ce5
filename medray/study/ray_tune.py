"""The launcher of Ray Tune: one Tuner per search, with a searcher, a scheduler and a callback that
share one `Session`. It imports no torch."""

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.callback import Callback
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from medray import plugins
from medray.runtime.cluster import free_leaked_groups
from medray.storage import files
from medray.study.placement import Placement
from medray.study.session import Session, TrialRow, TrialStart
from medray.study.trial_actor import TrialActor

log = logging.getLogger(__name__)
WARNING_INTERVAL_S = 30.0


def launch(session: Session, placements: Sequence[Placement]) -> None:
    """Run the trials of a session to their end. A full disk ends them early."""
    if num_groups := free_leaked_groups():
        log.warning("removed %d placement group(s) left by earlier jobs", num_groups)
    # On a full disk, Tune logs tracebacks about its own state, which medray does not read.
    logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)
    # Tune passes keys of AWS to its actors in a runtime environment, which Ray's agent writes to
    # its log. Trials need no keys.
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
        [name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")]
    )
    is_done = False
    while not is_done:
        reason = _fit(session, placements)
        if session.full:
            return
        has_more = session.requeue(reason)
        is_done = reason is None and not has_more


def call(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], placement: Placement
) -> list[Any]:
    """Call a function once per tuple of arguments, each in a process with the resources of a
    trial's worker. Return the results in order."""

    # Without GPUs, Ray runs the next call in the same process, whose imports are then complete.
    def call_and_free(*values: Any) -> Any:
        from medray.models.device import limit_memory
        from medray.training.worker import give_memory_back

        limit_memory(placement.gpus)
        try:
            return function(*values)
        finally:
            give_memory_back()

    remote = ray.remote(num_cpus=placement.cpus, num_gpus=placement.gpus)(call_and_free)
    results: list[Any] = ray.get([remote.remote(*values) for values in arguments])
    return results


def _fit(session: Session, placements: Sequence[Placement]) -> str | None:
    """Run one Tuner. Return why Tune stopped before the end of the search, or None."""
    first_report = threading.Event()
    num_at_once = min(placement.num_at_once for placement in placements)
    launchers = {placement.launcher for placement in placements}
    tuner = tune.Tuner(
        TrialActor,
        tune_config=tune.TuneConfig(
            search_alg=_Searcher(session, num_at_once),
            scheduler=_Scheduler(session, first_report),
            num_samples=-1,
            # A process that waits for its next trial holds its crew, and with it the CPUs that a
            # trial of the other launcher may wait for.
            reuse_actors=len(launchers) == 1,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            # A resumed study has several.
            name=f"tune-{sum(1 for _ in session.run.folder.glob('tune-*')) + 1}",
            storage_path=str(session.run.folder),
            callbacks=[_Callback(session)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=session.study.resources.max_failures),
            verbose=0,
        ),
    )
    least = min(placements, key=lambda placement: placement.least_workers * placement.cpus)
    threading.Thread(target=warn_of_waiting, args=(first_report, least), daemon=True).start()
    try:
        tuner.fit()
    # Ctrl-C, or SIGTERM as the runtime raises it. The trials' processes continue to train.
    except (KeyboardInterrupt, SystemExit):
        session.interrupt()
        raise
    # Tune handles a process that dies, but it stops when Ray ends a process for lack of memory.
    except Exception as err:
        if not _is_out_of_memory(err):
            raise
        return "its machine ran out of memory, and Ray ended its process or another one there"
    finally:
        first_report.set()
    return None


def _is_out_of_memory(err: BaseException | None) -> bool:
    while err is not None:
        if isinstance(err, ray.exceptions.OutOfMemoryError):
            return True
        err = err.__cause__
    return False


def warn_of_waiting(first_report: threading.Event, placement: Placement) -> None:
    """Warn while a study waits for CPUs or GPUs of other jobs: Tune and Train wait silently."""
    cpus, gpus = placement.least_workers * placement.cpus, placement.least_workers * placement.gpus
    # Resources of an earlier search of this study return a moment after its end. Read them before
    # the first trial takes any.
    for _ in range(10):
        free = ray.available_resources()
        if free.get("CPU", 0) >= cpus and free.get("GPU", 0) >= gpus:
            return
        if first_report.wait(0.2):
            return
    while not first_report.wait(WARNING_INTERVAL_S):
        log.warning(
            "no trial has reported yet: a trial takes %g CPU(s) and %g GPU(s), and %g and %g were "
            "free at the start; wait for other jobs, or stop them",
            cpus,
            gpus,
            free.get("CPU", 0),
            free.get("GPU", 0),
        )


def _tune_config(start: TrialStart, storage_path: Path) -> dict[str, Any]:
    """Return the configuration of a trial's process. `storage_path` is for Ray Train."""
    assignment, placement = start.assignment, start.placement
    resources = assignment.config["resources"]
    return {
        "assignment": assignment.as_dict(),
        "launcher": placement.launcher,
        "num_workers": placement.num_workers,
        "placement": resources["placement"],
        "cpus": placement.cpus,
        "gpus": placement.gpus,
        "max_failures": resources["max_failures"],
        "shares_crew": plugins.find(
            "training.strategies", assignment.config["train"]["strategy"]
        ).Strategy.is_reusable,
        "storage_path": str(storage_path),
    }


class _Shell:
    """Pickles to nothing, since the study's run stores the state of the search."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_Shell, Searcher):
    """Proposes as many trials as run at once. Tune's own limit counts a trial that Tune gave up as
    running forever."""

    def __init__(self, session: Session, num_at_once: int) -> None:
        super().__init__()
        self.session, self.num_at_once = session, num_at_once

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if len(self.session.under_way) >= self.num_at_once:
            return None
        with self.session.ending_on_full_disk():
            if (start := self.session.next()) is not None:
                return _tune_config(start, self.session.run.folder / "train")
        return Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: TrialRow | None = None, error: bool = False
    ) -> None:
        """Do nothing: the callback receives more details."""

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(b"")

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a study resumes from its run's records."""


class _Scheduler(_Shell, FIFOScheduler):
    def __init__(self, session: Session, first_report: threading.Event) -> None:
        super().__init__()
        self.session, self.first_report = session, first_report

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: TrialRow) -> str:
        self.first_report.set()
        with self.session.ending_on_full_disk():
            if self.session.on_trial_report(_name(trial), result):
                return TrialScheduler.CONTINUE
        return TrialScheduler.STOP


class _Callback(_Shell, Callback):
    def __init__(self, session: Session) -> None:
        self.session = session
        self.given_up: set[str] = set()  # ids of Tune's trials

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Find trials whose process Tune could not reuse. Tune calls no other hook for them (Ray
        2.60)."""
        for trial in trials:
            if trial.status == TuneTrial.ERROR and trial.trial_id not in self.given_up:
                self.given_up.add(trial.trial_id)
                if _name(trial) in self.session.under_way:
                    with self.session.ending_on_full_disk():
                        self.session.on_trial_loss(_name(trial))

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        with self.session.ending_on_full_disk():
            self.session.on_trial_start(_name(trial))

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        with self.session.ending_on_full_disk():
            self.session.on_trial_end(_name(trial))

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        error = trial.get_pickled_error() or trial.get_error()
        how = "it raised" if isinstance(error, ray.exceptions.RayTaskError) else "its process died:"
        with self.session.ending_on_full_disk():
            if files.is_full(error):  # Tune or Train met it in its own writes
                raise files.full(self.session.run.folder)
            self.session.on_trial_end(
                _name(trial), error=f"{how} {str(error).strip().splitlines()[-1]}"
            )


def _name(trial: TuneTrial) -> str:
    name: str = trial.config["assignment"]["trial"]
    return name
