"""One search as it runs: its trials' records, what a launcher starts next, and what a watcher
learns. It knows no launcher."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from medray.config.load import public_settings
from medray.config.study import StudyConfig, TrialConfig
from medray.data.audit import Audit
from medray.errors import DiskFullError, MedrayError
from medray.records import Evaluation, TrialRecord
from medray.storage import files
from medray.study.placement import Placement
from medray.study.repeats import config_of
from medray.study.run import Run, slugs
from medray.study.search import Plan, Proposal
from medray.training import stop
from medray.training.assignment import FAILED, FULL, Assignment, TrialReport

Row = dict[str, Any]
log = logging.getLogger(__name__)
_LOST = "Ray Tune gave it up without a result or an error"
_LEAST_LOSSES = 2  # by Tune, without a new evaluation, before a trial is a failed one
_LOOK_S = 0.1


class TrialWatcher(Protocol):
    """Shows how the trials of a search proceed."""

    def trials_planned(self, num_trials: int) -> None: ...

    def trial_started(self, record: TrialRecord) -> None: ...

    def trial_reported(self, record: TrialRecord, evaluation: Evaluation) -> None: ...

    def trial_finished(self, record: TrialRecord) -> None: ...


class Watcher(TrialWatcher, Protocol):
    """Shows how a whole study proceeds."""

    def stage(self, name: str) -> None: ...

    def audit(self, audit: Audit) -> None: ...


@dataclass(frozen=True)
class TrialStart:
    """What a launcher needs to start a trial, or to go on with it."""

    assignment: Assignment
    placement: Placement


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
        watcher: TrialWatcher,
        retry_failed: bool = False,
    ) -> None:
        self.study, self.run, self.search = study, run, search
        self.material, self.placement, self.watcher = material, placement, watcher
        self.names = slugs([base.source for base in study.base_models])
        self.records: dict[str, TrialRecord] = {}
        self.under_way: set[str] = set()  # trials that the launcher has
        self.stopped: set[str] = set()
        self.num_losses = Counter[
            str
        ]()  # how often the launcher lost each trial since its last new evaluation
        self.reached: dict[str, float] = {}  # the epochs of each trial's last evaluation
        self.full: DiskFullError | None = None  # why the search ended before its time
        self._unfinished = self._replay(retry_failed)

    @contextmanager
    def ending_on_full_disk(self) -> Iterator[None]:
        """A disk that is full ends the search, not its trials: their records are left as they are,
        for a resume."""
        try:
            yield
        except (OSError, DiskFullError) as err:
            if not files.is_full(err):
                raise
            self.full = err if isinstance(err, DiskFullError) else files.full(self.run.folder)

    def next(self) -> TrialStart | None:
        """The trial to start next: first what an earlier process left, then what the search
        proposes."""
        while not self.full and (
            record := self._unfinished.pop(0) if self._unfinished else self._proposed()
        ):
            self._keep(record)
            self.watcher.trials_planned(self.search.num_trials)
            try:
                start = self._start(record)
                self.under_way.add(record.trial)
                return start
            except (
                MedrayError
            ) as err:  # settings that exclude each other, or data that they cannot read
                self.trial_finished(record.trial, error=str(err))
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

    def _start(self, record: TrialRecord) -> TrialStart:
        self._keep(record.model_copy(update={"started_at": time.time(), "first_step_at": None}))
        config = config_of(self.study, record)
        placement = self.placement(config)
        resources = config.resources.model_copy(
            update={"cpus_per_worker": int(placement.cpus) or 1, "gpus_per_worker": placement.gpus}
        )
        config = config.model_copy(update={"resources": resources})
        folder = self.run.trial_dir(record.trial)
        stop.prepare(folder)
        return TrialStart(
            Assignment(
                record.trial, public_settings(config), str(self.material(config)), str(folder)
            ),
            placement,
        )

    def trial_started(self, trial: str) -> None:
        self.watcher.trial_started(self.records[trial])

    def trial_reported(self, trial: str, row: Row) -> bool:
        """Take a trial's report of an evaluation or of a failure; whether the trial goes on."""
        if FULL in row:
            raise DiskFullError(row[FULL])
        if self.full:
            return False
        record = self.records[trial]
        if FAILED in row:
            self._keep(record.model_copy(update={"status": "failed", "error": row[FAILED]}))
            return True
        report = TrialReport.from_row(row)
        if record.first_step_at is None:
            known = {
                name: getattr(report, name)
                for name in ("first_step_at", "num_parameters", "num_trainable")
            }
            record = self._keep(record.model_copy(update=known))
        evaluation = report.evaluation
        if evaluation.epochs > self.reached.get(trial, 0):
            self.reached[trial] = evaluation.epochs
            del self.num_losses[trial]
        goes_on = self.search.observe(
            trial, evaluation.epochs, evaluation.metrics[self.search.metric]
        )
        self.run.write_spent(self.search.seconds)
        self.watcher.trial_reported(record, evaluation)
        if goes_on or evaluation.is_last:
            return True
        self.stopped.add(trial)
        # Written now: a study that is killed before the trial has ended must not train it on.
        self._keep(record.model_copy(update={"status": "stopped"}))
        return False

    def trial_finished(self, trial: str, error: str | None = None) -> None:
        self.under_way.discard(trial)
        if self.full:
            return
        record = self.records[trial]
        error = error or record.error
        status = "failed" if error else "stopped" if trial in self.stopped else "finished"
        record = self._keep(
            record.model_copy(update={"status": status, "error": error, "ended_at": time.time()})
        )
        stop.remove(self.run.trial_dir(trial))
        self.search.complete(trial, record.settings, failed=error is not None)
        self.watcher.trial_finished(record)

    def interrupt(self) -> None:
        """Wait until the trials that train have stored their state after the step they are in, or
        for `resources.grace_s`.

        One that loads or evaluates stops after its next step, and is not waited for.
        """
        folders = [self.run.trial_dir(trial) for trial in sorted(self.under_way)]
        for folder in folders:
            stop.request(folder)
        grace_s = self.study.resources.grace_s
        if not any(map(stop.is_pending, folders)):
            return
        log.warning(
            "interrupted: each trial ends its step and stores its state, in at most %g s; once "
            "more ends it at once",
            grace_s,
        )
        deadline = time.monotonic() + grace_s
        while waiting := [folder.name for folder in folders if stop.is_pending(folder)]:
            if time.monotonic() > deadline:
                log.warning(
                    "no state within resources.grace_s %g: %s; each goes on from its last one",
                    grace_s,
                    ", ".join(waiting),
                )
                return
            time.sleep(_LOOK_S)

    def requeue(self, reason: str | None) -> bool:
        """Queue every trial again that was under way when the launcher stopped; whether any trial
        is queued."""
        for trial in [trial for trial in self.records if trial in self.under_way]:
            self.trial_lost(trial, reason)
        return bool(self._unfinished)

    def trial_lost(self, trial: str, reason: str | None = None) -> None:
        """Queue a trial again that the launcher gave up; it goes on from its last stored state, as
        often as a study allows without a new evaluation.

        Which of several caused their end is not known; one that gets further did not, and is not
        counted for another's failures. Without a reason no trial caused it: then also where a study
        allows no failure."""
        self.under_way.discard(trial)
        record = self.records[trial]
        if record.status != "running":
            return
        self.num_losses[trial] += 1
        num_allowed = self.study.resources.max_failures
        if self.num_losses[trial] > (num_allowed if reason else max(num_allowed, _LEAST_LOSSES)):
            self.trial_finished(trial, error=reason or _LOST)
        else:
            log.warning("%s: %s; it goes on from its last stored state", trial, reason or _LOST)
            self._unfinished.append(record)

    def _keep(self, record: TrialRecord) -> TrialRecord:
        self.records[record.trial] = record
        self.run.write(record)
        return record

    def _replay(self, retry_failed: bool) -> list[TrialRecord]:
        """Repeat to the search what an earlier process saw; return the trials that it did not
        finish."""
        unfinished = []
        self.search.spent_s = self.run.spent_s()
        for record in filter(self.search.owns, self.run.records()):
            if retry_failed and record.status == "failed":
                record = record.model_copy(
                    update={"status": "running", "error": None, "ended_at": None}
                )
            proposal = Proposal(
                record.base, record.number, record.settings, record.of, record.seed, record.fold
            )
            self.search.recall(proposal)
            self.search.begin(record.trial, proposal)
            for evaluation in self.run.history(record.trial):
                self.search.observe(
                    record.trial, evaluation.epochs, evaluation.metrics[self.search.metric]
                )
            self.records[record.trial] = record
            if record.status == "running":
                unfinished.append(record)
            else:
                self.search.complete(
                    record.trial, record.settings, failed=record.status == "failed"
                )
        return unfinished
