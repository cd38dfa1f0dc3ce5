"""How a search goes, while it goes: one live table in a terminal, plain lines anywhere else."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from medray.records import TrialRecord
from medray.selection.metrics import higher_is_better
from medray.training.assignment import VALIDATION
from medray.tuning.session import Watcher

_MOST_ROWS = 20  # of the live table: the trials that run, and the latest that ended


@dataclass(frozen=True)
class Watchers:
    """Several, who are told the same."""

    held: Sequence[Watcher]

    def planned(self, num_trials: int) -> None:
        for watcher in self.held:
            watcher.planned(num_trials)

    def begun(self, record: TrialRecord) -> None:
        for watcher in self.held:
            watcher.begun(record)

    def told(self, record: TrialRecord, row: dict[str, Any]) -> None:
        for watcher in self.held:
            watcher.told(record, row)

    def ended(self, record: TrialRecord) -> None:
        for watcher in self.held:
            watcher.ended(record)


@dataclass
class Shown:
    record: TrialRecord
    begun: float
    epoch: int | None = None
    value: float | None = None  # at the latest evaluation
    best: float | None = None
    seconds: float | None = None  # that it took, once it has ended


@dataclass
class Progress:
    metric: str
    console: Console
    num_before: int = 0  # trials that had ended when this process began
    num_trials: int = 0
    shown: dict[str, Shown] = field(default_factory=dict)
    live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=2, get_renderable=self._render)
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live:
            self.live.__exit__(*error)

    def planned(self, num_trials: int) -> None:
        self.num_trials = num_trials

    def begun(self, record: TrialRecord) -> None:
        self._shown(record).record = record

    def told(self, record: TrialRecord, row: dict[str, Any]) -> None:
        found = self._shown(record)
        value = row[VALIDATION + self.metric]
        found.epoch, found.value = row["epoch"], value
        found.best = value if found.best is None else self._better(found.best, value)
        self._say(
            f"{record.trial}  epoch {row['epoch']}  step {row['step']}  train loss {row['train_loss']:.4f}"
            f"  validation {self.metric} {value:.4f}  {row['tokens_per_s']:,.0f} tokens/s  {self._summary()}"
        )

    def ended(self, record: TrialRecord) -> None:
        found = self._shown(record)
        found.record, found.seconds = record, time.monotonic() - found.begun
        self._say(f"{record.trial}  {record.status}" + (f": {record.error}" if record.error else ""))

    def _shown(self, record: TrialRecord) -> Shown:
        return self.shown.setdefault(record.trial, Shown(record, time.monotonic()))

    @property
    def eta_s(self) -> float | None:
        """Seconds until the last trial ends, if each takes as long as those that ended here (one without an evaluation was only looked up)."""
        took = [found.seconds for found in self.shown.values() if found.seconds is not None and found.epoch is not None]
        if not took:
            return None
        mean, now = sum(took) / len(took), time.monotonic()
        running = [found for found in self.shown.values() if found.record.status == "running"]
        waiting = max(0, self.num_trials - self.num_before - len(self.shown))
        rest = waiting * mean + sum(max(0.0, mean - (now - found.begun)) for found in running)
        return rest / max(1, len(running))

    def _better(self, one: float, other: float) -> float:
        return max(one, other) if higher_is_better(self.metric) else min(one, other)

    def _summary(self) -> str:
        ended = self.num_before + sum(found.record.status != "running" for found in self.shown.values())
        said = f"{ended}/{self.num_trials} trials ended"
        reached = {name: found.best for name, found in self.shown.items() if found.best is not None}
        if reached:
            best = min(reached, key=lambda name: -reached[name] if higher_is_better(self.metric) else reached[name])
            said = f"best so far {reached[best]:.4f} ({best})  {said}"
        return said + (f"  about {_duration(self.eta_s)} to go" if self.eta_s else "")

    def _say(self, line: str) -> None:
        if not self.live:
            print(line, flush=True)

    def _render(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for column in ("base model", "trial", "epoch", f"validation {self.metric}", "best so far", ""):
            table.add_column(column, justify="right" if column in ("epoch", "best so far") or column.startswith("validation") else "left")
        running = [found for found in self.shown.values() if found.record.status == "running"]
        ended = [found for found in self.shown.values() if found.record.status != "running"]
        for found in [*ended[-max(1, _MOST_ROWS - len(running)) :], *running]:
            figures = ("" if value is None else f"{value:.4f}" for value in (found.value, found.best))
            table.add_row(found.record.base_model, found.record.trial, str(found.epoch or ""), *figures, found.record.status)
        return Group(table, Text(self._summary()))


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
