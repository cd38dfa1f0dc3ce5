"""Drawings as SVG: lines, boxes, dots and text.

Colors are CSS classes, so that a page sets them for light and dark mode. A standalone SVG carries
the light colors."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Literal
from xml.etree import ElementTree

NARROW, WIDE = 328, 820  # a phone's column and a page's
Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]
_XML_REFUSES = dict.fromkeys(
    [*range(9), 11, 12, *range(14, 32), 65534, 65535, *range(55296, 57344)]
)


@dataclass
class Drawing:
    """Marks on a plane. Screen readers read `title` and `description`."""

    title: str
    description: str
    width: float
    height: float
    marks: list[ElementTree.Element] = field(default_factory=list)

    def line(self, start: Point, end: Point, style: str) -> None:
        self._add("line", style, x1=start[0], y1=start[1], x2=end[0], y2=end[1])

    def path(self, points: Sequence[Point], style: str) -> None:
        self._add(
            "polyline",
            style,
            points=" ".join(f"{_short(x)},{_short(y)}" for x, y in points),
            fill="none",
        )

    def box(
        self,
        at: Point,
        width: float,
        height: float,
        style: str,
        *,
        tip: str = "",
        opacity: float | None = None,
    ) -> None:
        shade = {} if opacity is None else {"fill-opacity": round(opacity, 3)}
        self._add(
            "rect",
            style,
            tip,
            x=at[0],
            y=at[1],
            width=max(0.0, width),
            height=max(0.0, height),
            **shade,
        )

    def dot(self, at: Point, style: str, *, shape: int = 0, size: float = 4, tip: str = "") -> None:
        """Draw a dot, whose shape tells series apart without colors: circle, square, diamond,
        triangle."""
        x, y = at
        if shape % 4 == 0:
            self._add("circle", style, tip, cx=x, cy=y, r=size)
            return
        s, d, t = size * 0.9, size * 1.25, size * 1.15
        corners = {
            1: [(x - s, y - s), (x + s, y - s), (x + s, y + s), (x - s, y + s)],
            2: [(x, y - d), (x + d, y), (x, y + d), (x - d, y)],
            3: [(x, y - t), (x + t, y + t * 0.8), (x - t, y + t * 0.8)],
        }[shape % 4]
        self._add(
            "polygon",
            style,
            tip,
            points=" ".join(f"{_short(px)},{_short(py)}" for px, py in corners),
        )

    def text(self, at: Point, content: str, style: str = "", anchor: Anchor = "start") -> None:
        self._add(
            "text",
            style,
            x=at[0],
            y=at[1],
            **({} if anchor == "start" else {"text-anchor": anchor}),
        )
        self.marks[-1].text = _clean(content)

    def svg(self, *, standalone: bool = False) -> str:
        # A standalone file has margins and shows its title.
        left, top = (16, 40) if standalone else (0, 0)
        width, height = self.width + 2 * left, self.height + top + left
        size = {
            "viewBox": f"{-left} {-top} {_short(width)} {_short(height)}",
            "width": _short(width),
            "height": _short(height),
        }
        aria = {"role": "img", "aria-label": _clean(f"{self.title}. {self.description}")}
        root = ElementTree.Element(
            "svg",
            {**size, **aria, **({"xmlns": "http://www.w3.org/2000/svg"} if standalone else {})},
        )
        if standalone:
            ElementTree.SubElement(root, "title").text = _clean(self.title)
            ElementTree.SubElement(root, "style").text = standalone_css()
            ElementTree.SubElement(
                root,
                "rect",
                {
                    "class": "paper",
                    "x": str(-left),
                    "y": str(-top),
                    "width": "100%",
                    "height": "100%",
                },
            )
            ElementTree.SubElement(
                root, "text", {"class": "strong", "x": "0", "y": "-16"}
            ).text = _clean(self.title)
        root.extend(self.marks)
        return ElementTree.tostring(root, encoding="unicode")

    def _add(self, tag: str, style: str, tip: str = "", **attributes: float | str) -> None:
        values = {
            name: value if isinstance(value, str) else _short(value)
            for name, value in attributes.items()
        }
        mark = ElementTree.Element(tag, {**({"class": style} if style else {}), **values})
        if tip:
            ElementTree.SubElement(mark, "title").text = _clean(tip)
        self.marks.append(mark)


def series(number: int) -> str:
    """Return the CSS class of a series' color."""
    return f"s{number % NUM_SERIES}"


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _clean(text: str) -> str:
    return text.translate(_XML_REFUSES)


def text_width(text: str, size: float = 12) -> float:
    """Estimate the width of a text, with room for the differences between browsers' fonts."""
    narrow = sum(char in "iljtf.,:;'|!()[] -" for char in text)
    return size * (0.64 * (len(text) - narrow) + 0.38 * narrow)


def shorten(text: str, room: float, size: float = 12) -> str:
    """Cut a text in the middle if it does not fit, since names differ at their ends."""
    if text_width(text, size) <= room:
        return text
    keep = len(text)
    while keep > 4 and text_width(text[:keep], size) > room:
        keep -= 1
    head = max(1, keep // 2 - 1)
    return f"{text[:head]}…{text[-max(1, keep - head - 1) :]}"


LIGHT = {
    "paper": "#ffffff",
    "raised": "#f6f7f9",
    "ink": "#16191d",
    "muted": "#59626d",
    "rule": "#d9dee4",
    "faint": "#c3cad3",
    "accent": "#0a5a9c",
    "bad": "#a8320a",
    "s0": "#0a67a8",
    "s1": "#c4510a",
    "s2": "#007a5a",
    "s3": "#9a4f86",
    "s4": "#8a6d00",
    "s5": "#2a8fc4",
}
DARK = {
    "paper": "#14171b",
    "raised": "#1d2126",
    "ink": "#e8ebee",
    "muted": "#a3adb8",
    "rule": "#32383f",
    "faint": "#4b545e",
    "accent": "#6db8f2",
    "bad": "#f59a76",
    "s0": "#5fb2ee",
    "s1": "#f0915a",
    "s2": "#3fc49c",
    "s3": "#dc9bcb",
    "s4": "#dcb83c",
    "s5": "#9ad4f5",
}
NUM_SERIES = sum(name[1:].isdigit() for name in LIGHT)
FONT = (
    'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, '
    "sans-serif"
)


@cache
def page_css() -> str:
    """Return the CSS of a page with its charts: light or dark by the reader's setting, and light in
    print."""
    light, dark = (
        ";".join(f"--{name}:{value}" for name, value in colors.items()) for colors in (LIGHT, DARK)
    )
    schemes = f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return f"{schemes}\n{_chart_css()}\n{_sheet('report.css')}".replace("var(--font)", FONT)


@cache
def standalone_css(*, is_dark: bool = False) -> str:
    """Return the CSS of a standalone chart, with literal colors, which every SVG viewer
    supports."""
    css = _chart_css().replace("svg ", "")
    for name, value in (DARK if is_dark else LIGHT).items():
        css = css.replace(f"var(--{name})", value)
    return css.replace("var(--font)", FONT)


def _chart_css() -> str:
    colors = "".join(
        (
            f"svg .line.s{at}{{stroke:var(--s{at})}}svg .fill.s{at}{{fill:var(--s{at})}}svg "
            f".open.s{at}{{stroke:var(--s{at})}}svg text.s{at}{{fill:var(--s{at})}}"
        )
        for at in range(NUM_SERIES)
    )
    return _sheet("chart.css") + colors


def _sheet(name: str) -> str:
    return resources.files("medray.reports").joinpath(name).read_text(encoding="utf-8")
