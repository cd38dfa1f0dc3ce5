"""The mean of a figure over seeds, with its interval."""

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t as student


def mean_with_interval(values: Sequence[float]) -> str:
    """Return the mean in words, with its 95 % interval by Student's t from two values on."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.2f}"
    error = statistics.stdev(values) / math.sqrt(len(values))
    width = float(student.ppf(0.975, len(values) - 1)) * error
    return f"{mean:+.2f} (95 % interval {mean - width:+.2f} to {mean + width:+.2f})"
