"""What the process of a trial is given, and what it reports: plain values, for processes that
compute nothing and import no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from medray.errors import DiskFullError, MedrayError
from medray.records import Evaluation

_VALIDATION = "validation/"
FAILED = "failed"  # key of a report that tells why the trial cannot go on
FULL = "full"  # key of a report that tells that no trial can: there is no room for what it writes


@dataclass(frozen=True)
class Assignment:
    """What a process needs to run a trial; plain values, so that it travels anywhere."""

    trial: str
    config: dict[str, Any]  # a TrialConfig
    material: str  # path of the description that `gather` wrote
    folder: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TrialReport:
    """What a trial reports after an evaluation."""

    evaluation: Evaluation
    first_step_at: float | None  # seconds of the epoch
    num_parameters: int
    num_trainable: int

    def as_row(self) -> dict[str, Any]:
        """A flat dict, as Tune gives it on: validation figures under their split's name, as a
        path."""
        values = self.evaluation.as_dict()
        metrics = values.pop("metrics")
        facts = {
            name: getattr(self, name)
            for name in ("first_step_at", "num_parameters", "num_trainable")
        }
        return values | {_VALIDATION + name: value for name, value in metrics.items()} | facts

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """From its row, to which Tune adds keys of its own."""
        metrics = {
            name.removeprefix(_VALIDATION): value
            for name, value in row.items()
            if name.startswith(_VALIDATION)
        }
        evaluation = Evaluation.from_dict({**row, "metrics": metrics})
        return cls(evaluation, row["first_step_at"], row["num_parameters"], row["num_trainable"])


def failure(err: MedrayError) -> dict[str, str]:
    """The report of a trial that cannot go on."""
    return {FULL if isinstance(err, DiskFullError) else FAILED: str(err)}
