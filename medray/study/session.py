"""A running search: its trials' records, the next trial to start, and the reports to a watcher. It
knows no launcher."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from medray.config.load import public_settings
from medray.config.study import StudyConfig
from medray.config.trial import TrialConfig
from medray.data.audit import Audit
from medray.errors import DiskFullError, MedrayError
from medray.records import Evaluation, TrialRecord
from medray.storage import files
from medray.study.placement import Placement
from medray.study.repeats import config_of
from medray.study.run import Run, slugs
from medray.study.search import Plan, Proposal
from medray.training import stop
from medray.training.assignment import DISK_FULL, ERROR, Assignment, TrialReport

TrialRow = dict[str, Any]  # Ray Tune's word for one report of a trial
log = logging.getLogger(__name__)
_NO_REASON = "Ray Tune stopped it without a result or an error"
_LEAST_LOSSES = 2  # losses by Tune without a new evaluation, before a trial counts as failed
_LOOK_S = 0.1


class TrialWatcher(Protocol):
    """Shows the progress of a search's trials."""

    def on_num_trials(self, num_trials: int) -> None: ...

    def on_trial_start(self, record: TrialRecord) -> None: ...

    def on_trial_report(self, record: TrialRecord, evaluation: Evaluation) -> None: ...

    def on_trial_end(self, record: TrialRecord) -> None: ...


class Watcher(TrialWatcher, Protocol):
    """Shows the progress of a whole study."""

    def stage(self, name: str) -> None: ...

    def audit(self, audit: Audit) -> None: ...


@dataclass(frozen=True)
class TrialStart:
    """The values that a launcher needs to start or resume a trial."""

    assignment: Assignment
    placement: Placement


class Session:
    """A running search: the record of each trial, and the trials that are still to run."""

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
        self.under_way: set[str] = set()  # trials that the launcher runs
        self.early_stops: set[str] = set()  # trials that the search stopped
        # Losses of each trial by the launcher since its last new evaluation.
        self.num_losses: Counter[str] = Counter()
        self.last_epochs: dict[str, float] = {}  # of each trial's last evaluation
        self.full: DiskFullError | None = None  # the reason of an early end
        self._pending = self._replay(retry_failed)

    @contextmanager
    def ending_on_full_disk(self) -> Iterator[None]:
        """End the search on a full disk. The records of its trials stay unchanged for a resume."""
        try:
            yield
        except (OSError, DiskFullError) as err:
            if not files.is_full(err):
                raise
            self.full = err if isinstance(err, DiskFullError) else files.full(self.run.folder)

    def next(self) -> TrialStart | None:
        """Return the next trial to start: first those left by an earlier process, then the
        search's proposals."""
        while not self.full and (
            record := self._pending.pop(0) if self._pending else self._propose()
        ):
            self._keep(record)
            self.watcher.on_num_trials(self.search.num_trials)
            try:
                start = self._start(record)
                self.under_way.add(record.trial)
                return start
            except MedrayError as err:  # conflicting settings, or data that they cannot read
                self.on_trial_end(record.trial, error=str(err))
        return None

    def _propose(self) -> TrialRecord | None:
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
            update={"cpus_per_worker": placement.threads, "gpus_per_worker": placement.gpus}
        )
        config = config.model_copy(update={"resources": resources})
        folder = self.run.trial_dir(record.trial)
        stop.prepare(folder)
        return TrialStart(
            Assignment(
                record.trial,
                public_settings(config),
                str(self.material(config)),
                str(folder),
                self.search.early_rungs(record.base),
            ),
            placement,
        )

    def on_trial_start(self, trial: str) -> None:
        self.watcher.on_trial_start(self.records[trial])

    def on_trial_report(self, trial: str, result: TrialRow) -> bool:
        """Record a trial's evaluation or failure. Return whether the trial goes on."""
        if DISK_FULL in result:
            raise DiskFullError(result[DISK_FULL])
        if self.full:
            return False
        record = self.records[trial]
        if ERROR in result:
            self._keep(record.model_copy(update={"status": "failed", "error": result[ERROR]}))
            return True
        report = TrialReport.from_row(result)
        if record.first_step_at is None:
            fields = {
                name: getattr(report, name)
                for name in ("first_step_at", "num_parameters", "num_trainable")
            }
            record = self._keep(record.model_copy(update=fields))
        evaluation = report.evaluation
        if evaluation.epochs > self.last_epochs.get(trial, 0):
            self.last_epochs[trial] = evaluation.epochs
            del self.num_losses[trial]
        goes_on = self.search.observe(trial, evaluation.epochs, evaluation.metrics)
        self.run.write_search_time(self.search.seconds)
        self.watcher.on_trial_report(record, evaluation)
        if goes_on or evaluation.is_last:
            return True
        self.early_stops.add(trial)
        # Write it now: a study that is killed before the trial ends must not train it further.
        self._keep(record.model_copy(update={"status": "stopped"}))
        return False

    def on_trial_end(self, trial: str, error: str | None = None) -> None:
        self.under_way.discard(trial)
        if self.full:
            return
        record = self.records[trial]
        error = error or record.error
        status = "failed" if error else "stopped" if trial in self.early_stops else "finished"
        record = self._keep(
            record.model_copy(update={"status": status, "error": error, "ended_at": time.time()})
        )
        stop.remove(self.run.trial_dir(trial))
        self.search.complete(trial, record.settings, is_failure=error is not None)
        self.watcher.on_trial_end(record)

    def interrupt(self) -> None:
        """Wait until each training trial has stored its state after its current step, or for
        `resources.grace_s`.

        A trial that loads or evaluates stops after its next step. This method does not wait for it.
        """
        folders = [self.run.trial_dir(trial) for trial in sorted(self.under_way)]
        for folder in folders:
            stop.request(folder)
        grace_s = self.study.resources.grace_s
        if not any(map(stop.is_pending, folders)):
            return
        log.warning(
            "interrupted: each trial finishes its step and stores its state within %g s; interrupt "
            "again to end it at once",
            grace_s,
        )
        deadline = time.monotonic() + grace_s
        while waiting := [folder.name for folder in folders if stop.is_pending(folder)]:
            if time.monotonic() > deadline:
                log.warning(
                    "no state within resources.grace_s %g: %s; a resume uses the last stored state",
                    grace_s,
                    ", ".join(waiting),
                )
                return
            time.sleep(_LOOK_S)

    def requeue(self, reason: str | None) -> bool:
        """Queue each trial again that ran when the launcher stopped. Return whether a trial is
        queued."""
        for trial in [trial for trial in self.records if trial in self.under_way]:
            self.on_trial_loss(trial, reason)
        return bool(self._pending)

    def on_trial_loss(self, trial: str, reason: str | None = None) -> None:
        """Queue a lost trial again, from its last stored state. It fails when the losses without a
        new evaluation pass `resources.max_failures`.

        The launcher does not know which of several trials caused a loss. A trial with a new
        evaluation did not cause it, so its count starts again. Without a reason no trial caused
        the loss, and a trial is queued again even where a study allows no failure."""
        self.under_way.discard(trial)
        record = self.records[trial]
        if record.status != "running":
            if record.ended_at is None:  # lost between its last report and its end
                self.on_trial_end(trial)
            return
        self.num_losses[trial] += 1
        num_allowed = self.study.resources.max_failures
        if self.num_losses[trial] > (num_allowed if reason else max(num_allowed, _LEAST_LOSSES)):
            self.on_trial_end(trial, error=reason or _NO_REASON)
        else:
            log.warning(
                "%s: %s; it continues from its last stored state", trial, reason or _NO_REASON
            )
            self._pending.append(record)

    def _keep(self, record: TrialRecord) -> TrialRecord:
        self.records[record.trial] = record
        self.run.write(record)
        return record

    def _replay(self, retry_failed: bool) -> list[TrialRecord]:
        """Replay the reports of an earlier process to the search. Return the trials that it did
        not finish."""
        pending = []
        self.search.spent_s = self.run.search_time_s()
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
                self.search.observe(record.trial, evaluation.epochs, evaluation.metrics)
            self.records[record.trial] = record
            if record.status == "running":
                pending.append(record)
            else:
                self.search.complete(
                    record.trial, record.settings, is_failure=record.status == "failed"
                )
        return pending
