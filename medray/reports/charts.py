"""Draws the charts of a report from plain numbers: lines, scatter, confusion matrix,
reliability."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medray.reports.scale import Scale, log_span, span, tick
from medray.reports.svg import NARROW, Drawing, series, shorten, text_width


@dataclass(frozen=True)
class Curve:
    label: str
    points: tuple[tuple[float, float], ...]
    short: str = ""  # the name at its end
    series: int = 0
    is_strong: bool = False
    is_dotted: bool = True


@dataclass(frozen=True)
class Spot:
    """A point of a scatter chart, whose x may be a word."""

    x: float | str
    y: float
    label: str
    series: int | None = 0
    is_strong: bool = False


@dataclass(frozen=True)
class Frame:
    """A drawing with axes, and the scales of its inside."""

    drawing: Drawing
    x: Scale
    y: Scale


def frame(
    title: str,
    description: str,
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    x_label: str = "",
    width: float = NARROW,
    height: float = 230,
    log: bool = False,
    ticks: Sequence[tuple[float, str]] | None = None,
    right: float = 14,
) -> Frame:
    """Draw axes with horizontal rules. The page shows the title, which names the y axis."""
    drawing = Drawing(title, description, width, height)
    ys = Scale(*y, height - 38, 10)
    left = max(text_width(tick(value), 11) for value in ys.ticks()) + 10
    xs = Scale(*x, left + 4, width - right, is_log=log)
    for value in ys.ticks():
        drawing.line((left, ys(value)), (width - right + 6, ys(value)), "grid")
        drawing.text((left - 6, ys(value) + 4), tick(value), "small muted", "end")
    for value, name in (
        ticks if ticks is not None else [(value, tick(value)) for value in xs.ticks(5)]
    ):
        drawing.line((xs(value), height - 38), (xs(value), height - 34), "axis")
        drawing.text((xs(value), height - 21), name, "small muted", "middle")
    drawing.line((left, height - 38), (width - right + 6, height - 38), "axis")
    drawing.text(((left + width - right) / 2, height - 4), x_label, "small muted", "middle")
    return Frame(drawing, xs, ys)


def lines(
    title: str,
    description: str,
    curves: Sequence[Curve],
    *,
    x_label: str,
    y_top: float | None = None,
    y_bottom: float | None = None,
) -> Drawing:
    """Draw curves over epochs; those with a short name have it at their end."""
    points = [point for curve in curves for point in curve.points]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    with_names = [curve for curve in curves if curve.short]
    room = max([14.0, *(min(text_width(curve.short) + 12, 96) for curve in with_names)])
    x_low, x_high = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 0.5, max(xs) + 0.5)
    whole = [(float(x), str(x)) for x in range(math.ceil(x_low), math.floor(x_high) + 1)]
    ticks = whole if len(whole) <= 8 else None
    plot = frame(
        title,
        description,
        (x_low, x_high),
        span(ys, margin=0.08, low=y_bottom, high=y_top),
        x_label=x_label,
        right=room,
        ticks=ticks or None,
    )
    drawing = plot.drawing
    for curve in sorted(curves, key=lambda curve: curve.is_strong):
        places = [(plot.x(x), plot.y(y)) for x, y in curve.points]
        drawing.path(
            places, f"line {series(curve.series)}" + ("" if curve.is_strong else " thin pale")
        )
        for place, (x, y) in zip(places, curve.points, strict=True) if curve.is_dotted else ():
            kind = "fill" if curve.is_strong else "open"
            drawing.dot(
                place,
                f"{kind} {series(curve.series)}",
                shape=curve.series,
                size=4 if curve.is_strong else 2.75,
                tip=f"{curve.label} at {x:g}: {y:.4f}",
            )
        if curve in with_names:
            # The name stands beside the curve's end, or below a single point on another curve.
            below = 16 if len(places) == 1 < len(curves) else 4
            drawing.text(
                (places[-1][0] + 8, places[-1][1] + below),
                shorten(curve.short, room - 8),
                f"strong {series(curve.series)}",
            )
    return drawing


def scatter(
    title: str,
    description: str,
    spots: Sequence[Spot],
    *,
    x_label: str,
    log: bool = False,
    bands: Sequence[float] = (),
) -> Drawing:
    """Draw points; words on the x axis stand at equal distances. `bands` are horizontal lines, such
    as the value of a baseline."""
    words = list(dict.fromkeys(spot.x for spot in spots if isinstance(spot.x, str)))
    if words:
        at = {word: float(place) for place, word in enumerate(words)}
        ends, ticks = (
            (-0.5, len(words) - 0.5),
            [(at[word], shorten(word, 270 / len(words), 11)) for word in words],
        )
        log = False
    else:
        at, ticks = {}, None
        numbers = [float(spot.x) for spot in spots]
        log = log and min(numbers) > 0
        ends = log_span(numbers) if log else span(numbers, margin=0.08)
    heights = [spot.y for spot in spots] + list(bands)
    plot = frame(
        title, description, ends, span(heights, margin=0.1), x_label=x_label, log=log, ticks=ticks
    )
    for height in bands:
        plot.drawing.line(
            (plot.x.start, plot.y(height)), (plot.x.end, plot.y(height)), "line thin dash grey"
        )
    for spot in sorted(spots, key=lambda spot: spot.is_strong):
        x = at[spot.x] if isinstance(spot.x, str) else float(spot.x)
        color = "grey" if spot.series is None else series(spot.series)
        style = f"{'fill' if spot.is_strong else 'open'} {color}"
        tip = f"{spot.label}: {spot.x if isinstance(spot.x, str) else tick(x)}, {spot.y:.4f}"
        plot.drawing.dot(
            (plot.x(x), plot.y(spot.y)),
            style,
            shape=spot.series or 0,
            size=6 if spot.is_strong else 4.5,
            tip=tip,
        )
    return plot.drawing


def cells(
    title: str, description: str, labels: Sequence[str], counts: Sequence[Sequence[int]]
) -> Drawing:
    """Draw a confusion matrix. Rows are the truth; a cell's shade is its share of the row. If names
    do not fit, columns carry the numbers of the rows."""
    room = min(max(text_width(label) for label in labels) + 30, 150)
    size = max(27.0, min(84.0, (NARROW - room) / len(labels)))
    many = any(text_width(label) > size - 4 for label in labels)
    drawing = Drawing(
        title,
        description,
        max(float(NARROW), room + size * len(labels) + 2),
        42 + size * len(labels) + 6,
    )
    drawing.text((room, 14), "predicted", "small muted")
    drawing.text((0, 34), "true", "small muted")
    for column, label in enumerate(labels):
        drawing.text(
            (room + column * size + size / 2, 34), str(column + 1) if many else label, "", "middle"
        )
    for line, (label, row) in enumerate(zip(labels, counts, strict=True)):
        top = 42 + line * size
        drawing.text(
            (0, top + size / 2 + 4), shorten(f"{line + 1} {label}" if many else label, room - 8)
        )
        for column, count in enumerate(row):
            share = count / sum(row) if sum(row) else 0.0
            shade, ink = 0.06 + 0.94 * share, "onfill" if share > 0.7 else ""
            left = room + column * size
            tip = f"{count} rows of {label} are predicted as {labels[column]} ({share:.0%})"
            drawing.box((left + 1, top + 1), size - 2, size - 2, "cell", tip=tip, opacity=shade)
            big = size >= 50
            drawing.text(
                (left + size / 2, top + size / 2 + (0 if big else 4)),
                str(count),
                f"{ink} strong".strip(),
                "middle",
            )
            if big:
                drawing.text(
                    (left + size / 2, top + size / 2 + 16),
                    f"{share:.0%}",
                    f"small {ink}".strip(),
                    "middle",
                )
    return drawing


@dataclass(frozen=True)
class ReliabilityPoint:
    """A bin of rows with similar confidence: their mean confidence and their accuracy."""

    confidence: float
    accuracy: float
    num_rows: int
    low: float  # the lower end of the bin
    high: float


def reliability(
    title: str, description: str, points: Sequence[ReliabilityPoint], *, number: int = 0
) -> Drawing:
    """Draw accuracy over confidence, with the diagonal of perfect calibration. Larger dots and
    higher bars stand for more rows."""
    nonempty = [point for point in points if point.num_rows]
    left_end = min([0.9, *(math.floor(point.low * 10) / 10 for point in nonempty)])
    low = min([left_end, *(math.floor(point.accuracy * 10) / 10 for point in nonempty)])
    plot = frame(title, description, (left_end, 1.0), (low, 1.0), x_label="confidence", height=250)
    drawing, most = plot.drawing, max((point.num_rows for point in nonempty), default=1)
    for point in nonempty:
        height = 46 * point.num_rows / most
        left, right = plot.x(point.low), plot.x(point.high)
        tip = f"confidence {point.low:.2f} to {point.high:.2f}: {point.num_rows} rows"
        drawing.box(
            (left + 0.5, plot.y.start - height),
            right - left - 1,
            height,
            "fill bar grey",
            tip=tip,
            opacity=0.22,
        )
    drawing.line(
        (plot.x(left_end), plot.y(left_end)), (plot.x(1), plot.y(1)), "line thin dash grey"
    )
    for point in nonempty:
        place = (plot.x(point.confidence), plot.y(point.accuracy))
        tip = (
            f"confidence {point.confidence:.3f}, accuracy {point.accuracy:.3f}, "
            f"{point.num_rows} rows"
        )
        drawing.dot(
            place,
            f"fill {series(number)}",
            size=2.5 + 4.5 * math.sqrt(point.num_rows / most),
            tip=tip,
        )
    return drawing
