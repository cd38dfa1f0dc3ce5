"""The content of a report: sections of text, tables and charts. All strings are plain text without
markup."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from medray.reports.svg import Drawing, series

_COLUMN = 380


@dataclass(frozen=True)
class Paragraph:
    kind: ClassVar[str] = "text"
    text: str
    is_note: bool = False  # smaller and muted


@dataclass(frozen=True)
class Code:
    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class ReportTable:
    """A table, in which the first cell names the row. A table without headings is a list of names
    and values, and only screen readers read its caption."""

    kind: ClassVar[str] = "table"
    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: frozenset[int] = frozenset({0})  # columns that are aligned to the left
    strong: frozenset[int] = frozenset()  # rows in bold
    grey: frozenset[int] = frozenset()  # rows in grey


@dataclass(frozen=True)
class Chart:
    """A drawing, and the one that replaces it on a phone. `name` is the name of its file."""

    name: str
    drawing: Drawing
    narrow: Drawing | None = None

    @property
    def is_big(self) -> bool:
        """Return whether it is wider than a column. Scaled down, its words would be too small."""
        return self.narrow is None and self.drawing.width > _COLUMN


@dataclass(frozen=True)
class Key:
    """A line of a legend: a mark and its meaning."""

    label: str
    series: int | None = None
    is_open: bool = False

    @property
    def mark(self) -> Drawing:
        mark = Drawing(self.label, "mark", 12, 12)
        color = "grey" if self.series is None else series(self.series)
        mark.dot(
            (6, 6),
            f"{'open' if self.is_open else 'fill'} {color}",
            shape=self.series or 0,
            size=4.5,
        )
        return mark


@dataclass(frozen=True)
class ChartFigure:
    kind: ClassVar[str] = "figure"
    charts: Sequence[Chart]
    caption: str = ""
    keys: Sequence[Key] = ()

    @property
    def is_big(self) -> bool:
        return any(chart.is_big for chart in self.charts)


@dataclass(frozen=True)
class Details:
    """Blocks that are collapsed on screen and open in print."""

    kind: ClassVar[str] = "details"
    summary: str
    blocks: "Sequence[Block]"


Block = Paragraph | Code | ReportTable | ChartFigure | Details


@dataclass(frozen=True)
class ReportSection:
    id: str
    title: str
    blocks: Sequence[Block]

    def charts(self) -> "Iterator[Chart]":
        return _charts(self.blocks)


@dataclass(frozen=True)
class Fact:
    """A number that stands out at the head of a report."""

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class Report:
    title: str
    day: str
    headline: str
    findings: Sequence[str]
    facts: Sequence[Fact]
    sections: Sequence[ReportSection]
    footer: Sequence[str] = field(default_factory=tuple)

    def charts(self) -> Iterator[Chart]:
        for section in self.sections:
            yield from section.charts()


def _charts(blocks: Sequence[Block]) -> Iterator[Chart]:
    for block in blocks:
        if isinstance(block, ChartFigure):
            yield from block.charts
        elif isinstance(block, Details):
            yield from _charts(block.blocks)
