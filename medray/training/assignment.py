"""The assignment and the reports of a trial, as plain values: processes that compute nothing read
them, so nothing here imports torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from medray.errors import DiskFullError, MedrayError
from medray.records import Evaluation

_VALIDATION = "validation/"
# Keys of the report of a trial that cannot continue. With a full disk, no trial can.
ERROR = "failed"
DISK_FULL = "full"


@dataclass(frozen=True)
class Assignment:
    """The values that a process needs to run a trial."""

    trial: str
    config: dict[str, Any]  # a TrialConfig
    material: str  # path of the description that `gather` writes
    folder: str
    early_rungs: tuple[float, ...] = ()  # parts of the first epoch, for evaluations on few rows

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TrialReport:
    """The report of a trial after an evaluation."""

    evaluation: Evaluation
    first_step_at: float | None  # Unix time
    num_parameters: int
    num_trainable: int

    def as_row(self) -> dict[str, Any]:
        """Return a flat dict for Ray Tune. Validation metrics have the prefix `validation/`."""
        values = self.evaluation.as_dict()
        metrics = values.pop("metrics")
        facts = {
            name: getattr(self, name)
            for name in ("first_step_at", "num_parameters", "num_trainable")
        }
        return values | {_VALIDATION + name: value for name, value in metrics.items()} | facts

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Build the report from its row. Keys that Ray Tune adds are ignored."""
        metrics = {
            name.removeprefix(_VALIDATION): value
            for name, value in row.items()
            if name.startswith(_VALIDATION)
        }
        evaluation = Evaluation.from_dict({**row, "metrics": metrics})
        return cls(evaluation, row["first_step_at"], row["num_parameters"], row["num_trainable"])


def failure(err: MedrayError) -> dict[str, str]:
    """Return the report of a trial that cannot continue."""
    return {DISK_FULL if isinstance(err, DiskFullError) else ERROR: str(err)}
