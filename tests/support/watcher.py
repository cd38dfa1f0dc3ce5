"""A watcher of studies that keeps what it learns."""

from typing import Any

from medray.data.audit import Audit
from medray.records import TrialRecord


class Seen:
    """Keeps audits and reports, and may act on a report."""

    def __init__(self, act: Any = None) -> None:
        self.audits: list[Audit] = []
        self.rows: list[tuple[str, dict[str, Any]]] = []
        self.act = act

    def stage(self, name: str) -> None:
        pass

    def audit(self, audit: Audit) -> None:
        self.audits.append(audit)

    def trials_planned(self, num_trials: int) -> None:
        self.num_trials = num_trials

    def trial_started(self, record: TrialRecord) -> None:
        pass

    def trial_reported(self, record: TrialRecord, row: dict[str, Any]) -> None:
        self.rows.append((record.trial, row))
        if self.act:
            self.act(record, row)

    def trial_finished(self, record: TrialRecord) -> None:
        pass


def figures(history: list[dict[str, Any]]) -> list[tuple[int, float, float]]:
    return [(row["epoch"], row["train_loss"], row["metrics"]["f1_macro"]) for row in history]
