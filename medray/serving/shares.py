"""How predictions distribute over labels and confidence. Replicas report these shares of the
validation rows, so that a dashboard can compare traffic with them."""

import collections
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from medray.types import Prediction

BOUNDS = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0]  # of the confidence
NO_LABEL = "none"  # the name of a prediction without labels


@dataclass(frozen=True)
class Shares:
    labels: Mapping[str, float]
    confidence: Mapping[str, float]  # per bound, the share of rows with at most this confidence


def name_of(labels: Sequence[str]) -> str:
    """Return a prediction's labels as one name."""
    return "|".join(labels) or NO_LABEL


@lru_cache(maxsize=1024)
def tag_of(label: str) -> str:
    """Return a label as the tag of a metric. Ray encodes tags as ASCII (2.60), so other letters are
    escaped."""
    return (label or NO_LABEL).encode("ascii", "backslashreplace").decode("ascii")


def shares(predictions: Sequence[Prediction]) -> Shares:
    """Return the shares of calibrated predictions. They are empty if no prediction has a
    confidence, as for generated texts and mentions. Answers to typed questions have no labels,
    since their options may be a client's."""
    of_answers = [answer.confidence for row in predictions for answer in row.answers]
    sure = [row.confidence for row in predictions] + of_answers
    confidences = [one for one in sure if one is not None]
    if not confidences:
        return Shares({}, {})
    names = [name_of(row.labels) for row in predictions if not row.answers]
    return Shares(
        {label: count / len(names) for label, count in collections.Counter(names).items()},
        {
            f"{bound:g}": sum(one <= bound for one in confidences) / len(confidences)
            for bound in BOUNDS
        },
    )
