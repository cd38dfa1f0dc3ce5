"""Figures of a classifier, each by its full name: which average, over which classes. Arithmetic by scikit-learn."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Metrics:
    """`values` are ranked on and drawn as curves; the rest is for tables."""

    values: dict[str, float]
    num_rows: int
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)  # rows are the truth, columns the prediction
    labels: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
