"""How well confidences match the share of right answers, and the precision above each confidence.
Pure."""

from collections.abc import Iterator

import numpy as np

from medray.evaluation.analysis import Bin, Reliability, RiskPoint
from medray.types import Bools, Floats

NUM_BINS = 15
_MOST_POINTS = 50  # points of the risk-coverage curve


def bins_of(sure: Floats, right: Bools, log_loss: float) -> Reliability:
    """Return the share of right answers in each bin of confidence."""
    place = np.minimum((sure * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    bins = tuple(
        Bin(
            number / NUM_BINS,
            (number + 1) / NUM_BINS,
            int(inside.sum()),
            float(sure[inside].mean()),
            float(right[inside].mean()),
        )
        for number in range(NUM_BINS)
        if (inside := place == number).any()
    )
    ece = sum(part.num * abs(part.confidence - part.share_right) for part in bins) / len(sure)
    return Reliability(float(ece), log_loss, bins)


def risk_coverage(confidence: Floats, right: Bools) -> Iterator[RiskPoint]:
    order = np.argsort(-confidence, kind="stable")
    descending, hits = confidence[order], np.cumsum(right[order])
    # No threshold separates equal confidences.
    ends = np.append(np.flatnonzero(np.diff(descending)), len(descending) - 1)
    places = np.unique(np.linspace(0, len(ends) - 1, _MOST_POINTS).round().astype(np.int64))
    for end in ends[places][::-1]:
        num = int(end) + 1
        yield RiskPoint(float(descending[end]), num / len(order), num, float(hits[end] / num))
