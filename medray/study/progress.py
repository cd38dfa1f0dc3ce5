"""Show the progress of a study: a live table in a terminal, plain lines elsewhere, at least one per
minute."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from medray.data.audit import Audit
from medray.data.meter import Heartbeat
from medray.evaluation.metrics import higher_is_better
from medray.records import Evaluation, TrialRecord
from medray.study.session import TrialWatcher, Watcher
from medray.training import status
from medray.training.status import TRAINING, Status

_STARTING = "starting its process"
_MOST_ROWS = 20  # of the live table: running trials, and the latest finished ones


@dataclass(frozen=True)
class Watchers:
    """Shows stages and audits in one watcher, and trials in all of them."""

    first: Watcher
    others: Sequence[TrialWatcher]

    def stage(self, name: str) -> None:
        self.first.stage(name)

    def audit(self, audit: Audit) -> None:
        self.first.audit(audit)

    def on_num_trials(self, num_trials: int) -> None:
        for watcher in (self.first, *self.others):
            watcher.on_num_trials(num_trials)

    def on_trial_start(self, record: TrialRecord) -> None:
        for watcher in (self.first, *self.others):
            watcher.on_trial_start(record)

    def on_trial_report(self, record: TrialRecord, evaluation: Evaluation) -> None:
        for watcher in (self.first, *self.others):
            watcher.on_trial_report(record, evaluation)

    def on_trial_end(self, record: TrialRecord) -> None:
        for watcher in (self.first, *self.others):
            watcher.on_trial_end(record)


@dataclass
class TrialView:
    record: TrialRecord
    start: float
    epoch: int | None = None
    value: float | None = None  # at the latest evaluation
    best: float | None = None
    seconds: float | None = None  # duration, once it has ended
    status: Status | None = None  # while it runs


@dataclass
class Progress:
    metric: str
    console: Console
    num_before: int = 0  # trials that ended before this process
    trials_dir: Path | None = None  # where trials write their status
    every_s: float = 45.0  # after this silence, print one line per running trial
    num_trials: int = 0
    trials: dict[str, TrialView] = field(default_factory=dict)
    live: Live | None = None

    def __post_init__(self) -> None:
        self.heart = Heartbeat(self._print_line, state=self._lines, every_s=self.every_s)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=2, get_renderable=self.render)
            self.live.__enter__()
        self.heart.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.heart.__exit__(*error)
        if self.live:
            self.live.__exit__(*error)

    def stage(self, name: str) -> None:
        """Name the current stage of the study."""
        self.heart.stage(name)

    def audit(self, audit: Audit) -> None:
        print(audit.render(), flush=True)

    def on_num_trials(self, num_trials: int) -> None:
        self.num_trials = num_trials

    def on_trial_start(self, record: TrialRecord) -> None:
        self._view(record).record = record

    def on_trial_report(self, record: TrialRecord, evaluation: Evaluation) -> None:
        trial = self._view(record)
        value = evaluation.metrics[self.metric]
        trial.epoch, trial.value = evaluation.epoch, value
        if not evaluation.is_early:
            trial.best = value if trial.best is None else self._better(trial.best, value)
        self.heart.say(
            f"{record.trial}  epoch {evaluation.epoch}  step {evaluation.step}  train loss "
            f"{evaluation.train_loss:.4f}"
            f"  validation {self.metric} {value:.4f}  {evaluation.tokens_per_s:,.0f} tokens/s  "
            f"{self.summary()}"
        )

    def on_trial_end(self, record: TrialRecord) -> None:
        trial = self._view(record)
        trial.record, trial.seconds = record, time.monotonic() - trial.start
        self.heart.say(
            f"{record.trial}  {record.status}" + (f": {record.error}" if record.error else "")
        )

    def _view(self, record: TrialRecord) -> TrialView:
        return self.trials.setdefault(record.trial, TrialView(record, time.monotonic()))

    def _running(self) -> list[TrialView]:
        """Return the running trials with their current status."""
        running = [
            trial for trial in list(self.trials.values()) if trial.record.status == "running"
        ]
        if self.trials_dir:
            for trial in running:
                trial.status = status.read(self.trials_dir / trial.record.trial)
        return running

    @property
    def eta_s(self) -> float | None:
        """Estimate the seconds until the last trial ends, from the steps of running trials and the
        durations of finished ones.

        A finished trial without an evaluation here came from an earlier process and does not count.
        """
        now, running = time.monotonic(), self._running()
        left = {
            trial.record.trial: trial.status.left_s
            for trial in running
            if trial.status and trial.status.left_s is not None
        }
        durations = [
            trial.seconds
            for trial in list(self.trials.values())
            if trial.seconds is not None and trial.epoch is not None
        ]
        durations = durations or [
            now - trial.start + left[trial.record.trial]
            for trial in running
            if trial.record.trial in left
        ]
        if not durations:
            return None
        mean = sum(durations) / len(durations)
        waiting = max(0, self.num_trials - self.num_before - len(self.trials))
        rest = waiting * mean + sum(
            left.get(trial.record.trial, max(0.0, mean - (now - trial.start))) for trial in running
        )
        return rest / max(1, len(running))

    def _better(self, one: float, other: float) -> float:
        return max(one, other) if higher_is_better(self.metric) else min(one, other)

    def summary(self) -> str:
        num_finished = self.num_before + sum(
            trial.record.status != "running" for trial in list(self.trials.values())
        )
        summary = f"{num_finished}/{self.num_trials} trials ended"
        best_values = {
            name: trial.best for name, trial in list(self.trials.items()) if trial.best is not None
        }
        if best_values:
            best = min(
                best_values,
                key=lambda name: (
                    -best_values[name] if higher_is_better(self.metric) else best_values[name]
                ),
            )
            summary = f"best so far {best_values[best]:.4f} ({best})  {summary}"
        return summary + (f"  about {_duration(eta_s)} to go" if (eta_s := self.eta_s) else "")

    def _print_line(self, line: str) -> None:
        if not self.live:
            print(line, flush=True)

    def _lines(self) -> list[str]:
        """Return one line per running trial, and a summary; nothing where no trial runs."""
        running = self._running()
        lines = [f"{trial.record.trial}  {_where(trial.status)}" for trial in running]
        return [*lines, self.summary()] if lines else []

    def render(self) -> Group:
        running = self._running()
        table = Table(box=None, pad_edge=False)
        for column in (
            "trial",
            "epoch",
            "step",
            "loss",
            "tokens/s",
            self.metric,
            "best",
            "left",
            "",
        ):
            table.add_column(column, justify="left" if column in ("trial", "") else "right")
        past = [trial for trial in list(self.trials.values()) if trial.record.status != "running"]
        for trial in past[-max(1, _MOST_ROWS - len(running)) :]:
            figures = (
                "" if value is None else f"{value:.4f}" for value in (trial.value, trial.best)
            )
            table.add_row(
                trial.record.trial,
                str(trial.epoch or ""),
                "",
                "",
                "",
                *figures,
                "",
                trial.record.status,
            )
        for trial in running:
            figures = (
                "" if value is None else f"{value:.4f}" for value in (trial.value, trial.best)
            )
            now = trial.status or Status(_STARTING)
            table.add_row(
                trial.record.trial,
                str(now.epoch or trial.epoch or ""),
                f"{now.step}/{now.num_steps}" if now.step else "",
                "" if now.loss is None else f"{now.loss:.4f}",
                "" if now.tokens_per_s is None else f"{now.tokens_per_s:,.0f}",
                *figures,
                _duration(now.left_s),
                now.stage,
            )
        waiting = [] if running else [Text(self.heart.waiting)]
        return Group(table, Text(self.summary()), *waiting) if self.trials else Group(*waiting)


def _where(now: Status | None) -> str:
    """Render a trial's status in a line."""
    if now is None:
        return _STARTING
    parts = [] if now.stage == TRAINING else [now.stage]
    if now.step:
        parts += [
            f"epoch {now.epoch}",
            f"step {now.step}/{now.num_steps}",
            f"loss {now.loss:.4f}",
            f"{now.tokens_per_s:,.0f} tokens/s",
        ]
    if now.left_s is not None:
        parts.append(f"about {_duration(now.left_s)} to go")
    return "  ".join(parts)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
