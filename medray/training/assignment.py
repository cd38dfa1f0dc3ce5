"""What the process of a trial is given, and the keys of what it reports: plain values, for processes that compute nothing and import no torch."""

from dataclasses import asdict, dataclass
from typing import Any

from medray.errors import DiskFullError, MedrayError

VALIDATION = "validation/"  # before the name of a validation figure, as Tune and TensorBoard write a path
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


def failure(err: MedrayError) -> dict[str, str]:
    """The report of a trial that cannot go on."""
    return {FULL if isinstance(err, DiskFullError) else FAILED: str(err)}
