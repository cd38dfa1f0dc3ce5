"""What the process of a trial is given, and what it reports: plain values, for processes that compute nothing and import no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from medray.errors import DiskFullError, MedrayError
from medray.records import Evaluation

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

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From its dict, to which Tune adds keys of its own."""
        own = {field.name: values[field.name] for field in fields(cls)}
        return cls(**own | {"evaluation": Evaluation.from_dict(own["evaluation"])})


def failure(err: MedrayError) -> dict[str, str]:
    """The report of a trial that cannot go on."""
    return {FULL if isinstance(err, DiskFullError) else FAILED: str(err)}
