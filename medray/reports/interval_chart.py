"""Draws a chart of values with their intervals, one row each."""

from collections.abc import Sequence
from dataclasses import dataclass

from medray.reports.scale import Scale, span, tick
from medray.reports.svg import WIDE, Drawing, series, shorten, text_width


@dataclass(frozen=True)
class Bar:
    """A line of an interval chart."""

    label: str
    value: float | None  # a solid dot, with the interval if there is one
    low: float | None = None
    high: float | None = None
    other: float | None = None  # an open dot: the same metric on other rows
    series: int | None = 0  # None: grey, for an entry that is not a trial
    is_strong: bool = False
    text: str = ""
    brief: str = ""  # the text for a narrow chart


def intervals(
    title: str,
    description: str,
    bars: Sequence[Bar],
    *,
    width: float = WIDE,
    zero: bool = False,
    top: float | None = None,
) -> Drawing:
    """Draw one row per bar: a dot with its interval. Labels stand beside the dots, or above them
    in a narrow chart."""
    is_narrow = width < 500
    label_room = (
        0.0 if is_narrow else min(max(text_width(bar.label) for bar in bars) + 16, width * 0.42)
    )
    value_texts = [bar.brief or bar.text if is_narrow else bar.text for bar in bars]
    value_room = max((text_width(text) for text in value_texts), default=0) + 12
    row, above = (44, 20) if is_narrow else (28, 14)
    values = [
        value
        for bar in bars
        for value in (bar.value, bar.low, bar.high, bar.other)
        if value is not None
    ] + ([0.0] if zero else [])
    low, high = span(values or [0, 1], high=top)
    right = width - (8 if is_narrow else value_room + 6)
    x = Scale(low, high, label_room + 8, right)
    drawing = Drawing(title, description, width, len(bars) * row + 30)
    bottom = len(bars) * row + 6
    for value in x.ticks(4 if is_narrow else 6):
        drawing.line((x(value), 2), (x(value), bottom), "axis" if zero and value == 0 else "grid")
        drawing.text(
            (x(value), bottom + 16),
            f"{value:+g}" if zero and value else tick(value),
            "small muted",
            "middle",
        )
    for place, bar in enumerate(bars):
        y = place * row + (row - 14 if is_narrow else above)
        style = "strong" if bar.is_strong else "" if bar.series is not None else "muted"
        if is_narrow:
            drawing.text(
                (4, y - 14), shorten(bar.label, width - value_room - 12), f"halo {style}".strip()
            )
        else:
            drawing.text((0, y + 4), shorten(bar.label, label_room - 8), style)
        drawing.text(
            (width - 2, y - 14 if is_narrow else y + 4),
            value_texts[place],
            f"halo {style}".strip(),
            "end",
        )
        _draw_values(drawing, bar, x, y)
    return drawing


def _draw_values(drawing: Drawing, bar: Bar, x: Scale, y: float) -> None:
    """Draw the dots and the interval of a bar."""
    color = "grey" if bar.series is None else series(bar.series)
    if bar.low is not None and bar.high is not None:
        drawing.line((x(bar.low), y), (x(bar.high), y), f"line {color}")
        for end in (bar.low, bar.high):
            drawing.line((x(end), y - 4), (x(end), y + 4), f"line thin {color}")
    if bar.other is not None:
        drawing.dot(
            (x(bar.other), y),
            f"open {color}",
            shape=bar.series or 0,
            tip=f"{bar.label}: {bar.other:.4f}",
        )
    if bar.value is not None:
        drawing.dot(
            (x(bar.value), y),
            f"fill {color}",
            shape=bar.series or 0,
            size=5,
            tip=f"{bar.label}: {bar.value:.4f}",
        )
