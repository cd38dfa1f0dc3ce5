"""Studies run on the tests' Ray, and what was told of them."""

from typing import Any

from medray.config.study import StudyConfig
from medray.records import TrialRecord
from medray.runtime.cluster import Cluster
from medray.study import study as studies
from medray.study.run import Run
from medray.study.study import Outcome


class Seen:
    """A watcher that keeps what it is told, and may act on it."""

    def __init__(self, act: Any = None) -> None:
        self.rows: list[tuple[str, dict[str, Any]]] = []
        self.ended_: list[TrialRecord] = []
        self.act = act

    def planned(self, num_trials: int) -> None:
        self.num_trials = num_trials

    def begun(self, record: TrialRecord) -> None:
        pass

    def told(self, record: TrialRecord, row: dict[str, Any]) -> None:
        self.rows.append((record.trial, row))
        if self.act:
            self.act(record, row)

    def ended(self, record: TrialRecord) -> None:
        self.ended_.append(record)


def whole(cluster: Cluster) -> str:
    """The setting of a trial that takes every CPU: the next one runs in its process, which has imported what it needs."""
    return f"resources.cpus_per_worker={int(cluster.cpus)}"


def run(study: StudyConfig, cluster: Cluster, seen: Seen | None = None, here: Run | None = None, **options: bool) -> Outcome:
    return studies.run(study, cluster, here or Run.start(study), watcher=seen or Seen(), on_audit=lambda audit: None, **options)


def figures(history: list[dict[str, Any]]) -> list[tuple[int, float, float]]:
    return [(row["epoch"], row["train_loss"], row["metrics"]["f1_macro"]) for row in history]
