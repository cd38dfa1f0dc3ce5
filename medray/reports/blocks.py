"""What a report consists of, before it is a page: sections of text, tables and charts. Everything
here is plain text, nothing is markup."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from medray.reports.svg import Drawing, series

_COLUMN = 380


@dataclass(frozen=True)
class Text:
    kind: ClassVar[str] = "text"
    text: str
    is_note: bool = False  # set back, smaller


@dataclass(frozen=True)
class Code:
    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Table:
    """The first cell of a row names it. Without heads it is a list of names and values, whose
    caption is for those who cannot see it."""

    kind: ClassVar[str] = "table"
    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: frozenset[int] = frozenset({0})  # columns of words
    strong: frozenset[int] = frozenset()  # rows
    set_back: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Chart:
    """`name` is its file's; `narrow` takes its place on a phone."""

    name: str
    drawing: Drawing
    narrow: Drawing | None = None

    @property
    def is_big(self) -> bool:
        """Wider than a column, and not to be scaled down: its words would be too small."""
        return self.narrow is None and self.drawing.width > _COLUMN


@dataclass(frozen=True)
class Key:
    """A line of a legend: a mark and what it stands for."""

    label: str
    series: int | None = None
    is_open: bool = False

    @property
    def mark(self) -> Drawing:
        made = Drawing(self.label, "mark", 12, 12)
        colour = "grey" if self.series is None else series(self.series)
        made.dot(
            (6, 6),
            f"{'open' if self.is_open else 'fill'} {colour}",
            shape=self.series or 0,
            size=4.5,
        )
        return made


@dataclass(frozen=True)
class Figure:
    kind: ClassVar[str] = "figure"
    charts: Sequence[Chart]
    caption: str = ""
    keys: Sequence[Key] = ()

    @property
    def is_big(self) -> bool:
        return any(chart.is_big for chart in self.charts)


@dataclass(frozen=True)
class Details:
    """Opened by who wants it; printed open."""

    kind: ClassVar[str] = "details"
    summary: str
    blocks: "Sequence[Block]"


Block = Text | Code | Table | Figure | Details


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Fact:
    """A figure that stands out at the head of a report."""

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class Report:
    title: str
    day: str
    headline: str
    said: Sequence[str]
    facts: Sequence[Fact]
    sections: Sequence[Section]
    footer: Sequence[str] = field(default_factory=tuple)

    def charts(self) -> Iterator[Chart]:
        for section in self.sections:
            yield from _charts(section.blocks)


def _charts(blocks: Sequence[Block]) -> Iterator[Chart]:
    for block in blocks:
        if isinstance(block, Figure):
            yield from block.charts
        elif isinstance(block, Details):
            yield from _charts(block.blocks)
