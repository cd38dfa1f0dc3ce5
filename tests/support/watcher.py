"""A watcher of studies that records audits and reports."""

from typing import Any

from medray.data.audit import Audit
from medray.records import Evaluation, TrialRecord


class RecordingWatcher:
    """Records audits and reports, and calls `act` on each report."""

    def __init__(self, act: Any = None) -> None:
        self.audits: list[Audit] = []
        self.evaluations: list[tuple[str, Evaluation]] = []
        self.act = act

    def stage(self, name: str) -> None:
        pass

    def audit(self, audit: Audit) -> None:
        self.audits.append(audit)

    def on_num_trials(self, num_trials: int) -> None:
        self.num_trials = num_trials

    def on_trial_start(self, record: TrialRecord) -> None:
        pass

    def on_trial_report(self, record: TrialRecord, evaluation: Evaluation) -> None:
        self.evaluations.append((record.trial, evaluation))
        if self.act:
            self.act(record, evaluation)

    def on_trial_end(self, record: TrialRecord) -> None:
        pass


def figures(history: list[Evaluation]) -> list[tuple[int, float, float]]:
    return [(row.epoch, row.train_loss, row.metrics["f1_macro"]) for row in history]
