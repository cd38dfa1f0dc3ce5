"""The scales of charts: from values to places, with round values for the axes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Maps values to places. A log scale takes positive values only."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (
            (math.log10(at) for at in (self.low, self.high, value))
            if self.is_log
            else (self.low, self.high, value)
        )
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Return about `most` round values within the scale."""
        if self.is_log:
            return self._log_ticks(most)
        rough = (self.high - self.low) / most
        size = 10 ** math.floor(math.log10(rough))
        step = next(times * size for times in (1, 2, 2.5, 5, 10) if times * size >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        values = [round((first + at) * step, 12) for at in range(most + 3)]
        return [value for value in values if value <= self.high + step * 1e-9]

    def _log_ticks(self, most: int) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for times in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1, 3), (1,)):
            values = [float(f"{at}e{power}") for power in powers for at in times]
            values = [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]
            if len(values) <= most + 1:
                break
        if len(values) < 2:
            return Scale(self.low, self.high, self.start, self.end).ticks(min(most, 3))
        return values[:: max(1, math.ceil(len(values) / (most + 1)))]


def span(
    values: Sequence[float],
    *,
    margin: float = 0.06,
    low: float | None = None,
    high: float | None = None,
) -> tuple[float, float]:
    """Return the range of the values with a margin, clipped to `low` and `high` where set. The
    range is never empty."""
    least, most = min(values), max(values)
    air = (most - least) * margin or abs(most) * 0.05 or 0.5
    least, most = least - air, most + air
    return (least if low is None else max(low, least)), (most if high is None else min(high, most))


def log_span(values: Sequence[float], margin: float = 0.08) -> tuple[float, float]:
    least, most = span([math.log10(value) for value in values], margin=margin)
    return 10**least, 10**most


def tick(value: float) -> str:
    """Format a value of an axis briefly."""
    if value and (abs(value) < 0.01 - 1e-9 or abs(value) >= 1e6):
        power = math.floor(math.log10(abs(value)))
        if abs(value) >= 1e6 and power < 12:
            return f"{value / 1e6:g} M" if power < 9 else f"{value / 1e9:g} G"
        return f"{value / 10**power:g}e{power}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
