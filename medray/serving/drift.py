"""What a release said of its validation rows, as shares: what the answers of today are compared with."""

import collections
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medray.tasks.base import Prediction

BOUNDS = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0]  # of confidence
NOTHING = "none"  # where no label was given


@dataclass(frozen=True)
class Shares:
    labels: Mapping[str, float]
    confidence: Mapping[str, float]  # share of the rows with at most this confidence, by bound


def named(labels: Sequence[str]) -> str:
    """An answer's labels as one name."""
    return "|".join(labels) or NOTHING


def shares(predictions: "Sequence[Prediction]") -> Shares:
    """Of calibrated predictions. Those without a confidence, which are texts or mentions, have none here either."""
    sure = [row.confidence for row in predictions if row.confidence is not None]
    if not sure:
        return Shares({}, {})
    counts = collections.Counter(named(row.labels) for row in predictions)
    return Shares(
        {label: count / len(predictions) for label, count in counts.items()},
        {f"{bound:g}": sum(one <= bound for one in sure) / len(sure) for bound in BOUNDS},
    )
