"""The charts of a report, each from plain figures: intervals, lines, scatter, heat cells,
reliability."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medray.reports.svg import Drawing, Scale, log_span, series, shortened, span, text_width, tick

NARROW, WIDE = 328, 820  # a phone's column and a page's


@dataclass(frozen=True)
class Bar:
    """A line of an interval chart."""

    label: str
    value: float | None  # solid, with its interval where there is one
    low: float | None = None
    high: float | None = None
    other: float | None = None  # open: the same on other rows
    series: int | None = 0  # None: grey, for what is not a trial
    is_strong: bool = False
    shown: str = ""
    brief: str = ""  # the same where there is little room


@dataclass(frozen=True)
class Curve:
    label: str
    points: tuple[tuple[float, float], ...]
    short: str = ""  # stands at its end
    series: int = 0
    is_strong: bool = False
    is_dotted: bool = True


@dataclass(frozen=True)
class Spot:
    """A point of a scatter; x may be a word."""

    x: float | str
    y: float
    label: str
    series: int | None = 0
    is_strong: bool = False


def intervals(
    title: str,
    says: str,
    bars: Sequence[Bar],
    *,
    width: float = WIDE,
    zero: bool = False,
    top: float | None = None,
) -> Drawing:
    """A row each: dots with their intervals, labels beside them, or above them where it is
    narrow."""
    is_narrow = width < 500
    label_room = (
        0.0 if is_narrow else min(max(text_width(bar.label) for bar in bars) + 16, width * 0.42)
    )
    told = [bar.brief or bar.shown if is_narrow else bar.shown for bar in bars]
    value_room = max((text_width(text) for text in told), default=0) + 12
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
    made = Drawing(title, says, width, len(bars) * row + 30)
    bottom = len(bars) * row + 6
    for value in x.ticks(4 if is_narrow else 6):
        made.line((x(value), 2), (x(value), bottom), "axis" if zero and value == 0 else "grid")
        made.text(
            (x(value), bottom + 16),
            f"{value:+g}" if zero and value else tick(value),
            "small muted",
            "middle",
        )
    for place, bar in enumerate(bars):
        y = place * row + (row - 14 if is_narrow else above)
        colour = "grey" if bar.series is None else series(bar.series)
        style = "strong" if bar.is_strong else "" if bar.series is not None else "muted"
        if is_narrow:
            made.text(
                (4, y - 14), shortened(bar.label, width - value_room - 12), f"halo {style}".strip()
            )
        else:
            made.text((0, y + 4), shortened(bar.label, label_room - 8), style)
        made.text(
            (width - 2, y - 14 if is_narrow else y + 4), told[place], f"halo {style}".strip(), "end"
        )
        if bar.low is not None and bar.high is not None:
            made.line((x(bar.low), y), (x(bar.high), y), f"line {colour}")
            for end in (bar.low, bar.high):
                made.line((x(end), y - 4), (x(end), y + 4), f"line thin {colour}")
        if bar.other is not None:
            made.dot(
                (x(bar.other), y),
                f"open {colour}",
                shape=bar.series or 0,
                tip=f"{bar.label}: {bar.other:.4f}",
            )
        if bar.value is not None:
            made.dot(
                (x(bar.value), y),
                f"fill {colour}",
                shape=bar.series or 0,
                size=5,
                tip=f"{bar.label}: {bar.value:.4f}",
            )
    return made


@dataclass(frozen=True)
class Frame:
    """The inside of a chart with axes."""

    drawing: Drawing
    x: Scale
    y: Scale


def frame(
    title: str,
    says: str,
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
    """Horizontal rules only; the title stands in the page, the y axis is named by it."""
    made = Drawing(title, says, width, height)
    ys = Scale(*y, height - 38, 10)
    left = max(text_width(tick(value), 11) for value in ys.ticks()) + 10
    xs = Scale(*x, left + 4, width - right, is_log=log)
    for value in ys.ticks():
        made.line((left, ys(value)), (width - right + 6, ys(value)), "grid")
        made.text((left - 6, ys(value) + 4), tick(value), "small muted", "end")
    for value, name in (
        ticks if ticks is not None else [(value, tick(value)) for value in xs.ticks(5)]
    ):
        made.line((xs(value), height - 38), (xs(value), height - 34), "axis")
        made.text((xs(value), height - 21), name, "small muted", "middle")
    made.line((left, height - 38), (width - right + 6, height - 38), "axis")
    made.text(((left + width - right) / 2, height - 4), x_label, "small muted", "middle")
    return Frame(made, xs, ys)


def lines(
    title: str,
    says: str,
    curves: Sequence[Curve],
    *,
    x_label: str,
    y_top: float | None = None,
    y_bottom: float | None = None,
) -> Drawing:
    """Curves over epochs; strong ones are named at their ends."""
    points = [point for curve in curves for point in curve.points]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    named = [curve for curve in curves if curve.short]
    room = max([14.0, *(min(text_width(curve.short) + 12, 96) for curve in named)])
    x_low, x_high = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 0.5, max(xs) + 0.5)
    whole = [(float(x), str(x)) for x in range(math.ceil(x_low), math.floor(x_high) + 1)]
    ticks = whole if len(whole) <= 8 else None
    held = frame(
        title,
        says,
        (x_low, x_high),
        span(ys, margin=0.08, low=y_bottom, high=y_top),
        x_label=x_label,
        right=room,
        ticks=ticks or None,
    )
    made = held.drawing
    for curve in sorted(curves, key=lambda curve: curve.is_strong):
        places = [(held.x(x), held.y(y)) for x, y in curve.points]
        made.path(
            places, f"line {series(curve.series)}" + ("" if curve.is_strong else " thin pale")
        )
        for place, (x, y) in zip(places, curve.points, strict=True) if curve.is_dotted else ():
            kind = "fill" if curve.is_strong else "open"
            made.dot(
                place,
                f"{kind} {series(curve.series)}",
                shape=curve.series,
                size=4 if curve.is_strong else 2.75,
                tip=f"{curve.label} at {x:g}: {y:.4f}",
            )
        if curve in named:
            below = (
                16 if len(places) == 1 < len(curves) else 4
            )  # beside a curve's end, under a point that lies on another's
            made.text(
                (places[-1][0] + 8, places[-1][1] + below),
                shortened(curve.short, room - 8),
                f"strong {series(curve.series)}",
            )
    return made


def scatter(
    title: str,
    says: str,
    spots: Sequence[Spot],
    *,
    x_label: str,
    log: bool = False,
    bands: Sequence[float] = (),
) -> Drawing:
    """Points; words on the x axis stand at equal distances. `bands` are named heights, such as a
    reference's."""
    words = list(dict.fromkeys(spot.x for spot in spots if isinstance(spot.x, str)))
    if words:
        at = {word: float(place) for place, word in enumerate(words)}
        ends, ticks = (
            (-0.5, len(words) - 0.5),
            [(at[word], shortened(word, 270 / len(words), 11)) for word in words],
        )
        log = False
    else:
        at, ticks = {}, None
        numbers = [float(spot.x) for spot in spots]
        log = log and min(numbers) > 0
        ends = log_span(numbers) if log else span(numbers, margin=0.08)
    heights = [spot.y for spot in spots] + list(bands)
    held = frame(
        title, says, ends, span(heights, margin=0.1), x_label=x_label, log=log, ticks=ticks
    )
    for height in bands:
        held.drawing.line(
            (held.x.start, held.y(height)), (held.x.end, held.y(height)), "line thin dash grey"
        )
    for spot in sorted(spots, key=lambda spot: spot.is_strong):
        x = at[spot.x] if isinstance(spot.x, str) else float(spot.x)
        colour = "grey" if spot.series is None else series(spot.series)
        style = f"{'fill' if spot.is_strong else 'open'} {colour}"
        tip = f"{spot.label}: {spot.x if isinstance(spot.x, str) else tick(x)}, {spot.y:.4f}"
        held.drawing.dot(
            (held.x(x), held.y(spot.y)),
            style,
            shape=spot.series or 0,
            size=6 if spot.is_strong else 4.5,
            tip=tip,
        )
    return held.drawing


def cells(title: str, says: str, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Drawing:
    """A confusion matrix: rows are the truth, shaded by their share of the row. Columns have the
    numbers of rows where names do not fit."""
    room = min(max(text_width(label) for label in labels) + 30, 150)
    size = max(27.0, min(84.0, (NARROW - room) / len(labels)))
    many = any(text_width(label) > size - 4 for label in labels)
    made = Drawing(
        title, says, max(float(NARROW), room + size * len(labels) + 2), 42 + size * len(labels) + 6
    )
    made.text((room, 14), "answered", "small muted")
    made.text((0, 34), "truth", "small muted")
    for column, label in enumerate(labels):
        made.text(
            (room + column * size + size / 2, 34), str(column + 1) if many else label, "", "middle"
        )
    for line, (label, row) in enumerate(zip(labels, counts, strict=True)):
        top = 42 + line * size
        made.text(
            (0, top + size / 2 + 4), shortened(f"{line + 1} {label}" if many else label, room - 8)
        )
        for column, count in enumerate(row):
            share = count / sum(row) if sum(row) else 0.0
            shade, ink = 0.06 + 0.94 * share, "onfill" if share > 0.7 else ""
            left = room + column * size
            tip = f"{count} rows of {label} were answered {labels[column]} ({share:.0%})"
            made.box((left + 1, top + 1), size - 2, size - 2, "cell", tip=tip, opacity=shade)
            big = size >= 50
            made.text(
                (left + size / 2, top + size / 2 + (0 if big else 4)),
                str(count),
                f"{ink} strong".strip(),
                "middle",
            )
            if big:
                made.text(
                    (left + size / 2, top + size / 2 + 16),
                    f"{share:.0%}",
                    f"small {ink}".strip(),
                    "middle",
                )
    return made


@dataclass(frozen=True)
class Bin:
    """Rows whose confidence is alike: how sure the model was, how often it was right."""

    confidence: float
    accuracy: float
    num_rows: int
    low: float  # ends of the bin
    high: float


def reliability(title: str, says: str, bins: Sequence[Bin], *, number: int = 0) -> Drawing:
    """Accuracy over confidence with the diagonal it should lie on; larger dots hold more rows, and
    bars beneath say how many."""
    filled = [found for found in bins if found.num_rows]
    left_end = min([0.9, *(math.floor(found.low * 10) / 10 for found in filled)])
    low = min([left_end, *(math.floor(found.accuracy * 10) / 10 for found in filled)])
    held = frame(title, says, (left_end, 1.0), (low, 1.0), x_label="confidence", height=250)
    made, most = held.drawing, max((found.num_rows for found in filled), default=1)
    for found in filled:
        height = 46 * found.num_rows / most
        left, right = held.x(found.low), held.x(found.high)
        tip = f"confidence {found.low:.2f} to {found.high:.2f}: {found.num_rows} rows"
        made.box(
            (left + 0.5, held.y.start - height),
            right - left - 1,
            height,
            "fill bar grey",
            tip=tip,
            opacity=0.22,
        )
    made.line((held.x(left_end), held.y(left_end)), (held.x(1), held.y(1)), "line thin dash grey")
    for found in filled:
        place = (held.x(found.confidence), held.y(found.accuracy))
        tip = (
            f"confidence {found.confidence:.3f}, right {found.accuracy:.3f}, {found.num_rows} rows"
        )
        made.dot(
            place,
            f"fill {series(number)}",
            size=2.5 + 4.5 * math.sqrt(found.num_rows / most),
            tip=tip,
        )
    return made
