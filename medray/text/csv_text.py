"""Delimited text: rows read within bounds, each with its lines, and tables written so that a
spreadsheet runs no cell.

A quote that never closes takes the rows behind it into one field. So a row says how many lines it
stands in, and one that cannot be right says why and at which quote; no reason repeats what is in
the file."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, TextIO

from medray.text.dialect import declared_delimiter

MOST_CHARACTERS = (
    16 << 20
)  # of a line, or of the lines of a row: some hundred times the longest article
MOST_LINES = (
    10_000  # of a row: a hospital's longest notes, wrapped at 80 characters, have about 1,000
)
_ROWS_INSIDE = 20  # so many lines in a field that are all rows themselves are no text,
_PAIRS_INSIDE = 100  # or so many of two values, since findings may be listed like that
_FAULTS = {  # in csv's words, and in a sentence's
    "unexpected end of data": "does not close",
    (
        "new-line character seen in unquoted field - do you need to open the file in "
        "universal-newline mode?"
    ): ("holds a line end of CR alone; end lines by LF or CRLF"),
    **{f"'{mark}' expected after '\"'": "goes on where its quote closes" for mark in ",\t|;"},
}
_FORMULA = re.compile(r"['\s]*+(?![+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?\s*$)[=+\-@＝＋－＠]")


class CsvRow(NamedTuple):  # there are millions
    line: int  # that it begins in
    num_lines: int
    values: list[str]
    reason: str = ""  # why it cannot be read; all its lines are lost with it


def bounded_lines(file: TextIO, most: int = MOST_CHARACTERS) -> Iterator[str]:
    """Lines of a file. Of a line of `most` characters or more the first `most` are given, and the
    rest is passed over."""
    while line := file.readline(most):
        yield line
        while len(line) >= most and not line.endswith(("\n", "\r")):
            line = file.readline(most)


def read_rows(
    lines: Iterable[str], delimiter: str, most: int = MOST_CHARACTERS
) -> Iterator[CsvRow]:
    """Every row, blank ones too; after one that cannot be read, those behind its lines. A first
    line `sep=;` is none."""
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB a field, is less than a long document
    source = iter(lines)
    first = next(source, "")
    is_declared = declared_delimiter(first) is not None
    feed = _Feed(source if is_declared else chain([first] if first else [], source), most)
    rows = csv.reader(feed, delimiter=delimiter, strict=True)
    line, width = 1 + is_declared, 0
    while True:
        feed.row.clear()
        try:
            values = next(rows)
            fault = (
                _rows_inside(feed.row[1:-1], delimiter, width)
                if len(feed.row) > _ROWS_INSIDE
                else ""
            )
        except StopIteration:
            return
        except csv.Error as err:
            values, fault = [], _FAULTS.get(str(err), str(err))
        yield CsvRow(
            line, len(feed.row), values, fault and _reason(line, feed.row, delimiter, fault)
        )
        width = width or len(values)
        line += len(feed.row)


class _Feed(Iterator[str]):
    """Lines for a reader, until those of one row are too many."""

    def __init__(self, lines: Iterable[str], most: int) -> None:
        self.row: list[str] = []  # its lines
        self._lines, self._most, self._num_characters = iter(lines), most, 0

    def __next__(self) -> str:
        line = next(self._lines)
        self._num_characters = len(line) + (self._num_characters if self.row else 0)
        self.row.append(line)
        if self._num_characters >= self._most:
            raise csv.Error(f"is longer than {self._most} characters")
        if len(self.row) > MOST_LINES:
            raise csv.Error(f"does not close in {MOST_LINES} lines")
        return line


def _rows_inside(inner: Sequence[str], delimiter: str, width: int) -> str:
    """Whether lines inside a field are rows that a stray quote took in: each has as many values as
    the header.

    Lists in a text have a blank behind each comma. Rows that have one there begin no field with a
    quote, so none was taken in."""
    least = _PAIRS_INSIDE if width == 2 else _ROWS_INSIDE
    is_table = (
        width > 1
        and len(inner) >= least
        and all(line.count(delimiter) == width - 1 for line in inner)
    )
    is_table = is_table and not all(f"{delimiter} " in line for line in inner)
    return f"holds {len(inner)} lines that are rows themselves" if is_table else ""


def _reason(line: int, lines: Sequence[str], delimiter: str, fault: str) -> str:
    opening = _opening_line(lines, delimiter)
    return (
        f"the row {fault}"
        if opening is None
        else f"the quoted field that opens in line {line + opening} {fault}"
    )


def _opening_line(lines: Sequence[str], delimiter: str) -> int | None:
    """The line, from 0, of the quote that opens the first field which does not end at a
    delimiter."""
    mark, text = re.escape(delimiter), "".join(lines)
    whole = re.compile(rf'(?:(?:"(?:[^"]++|"")*+"|[^"{mark}\r\n][^{mark}\r\n]*+|){mark})*+').match(
        text
    )
    at = whole.end() if whole else 0
    if not text.startswith('"', at):
        return None
    for number, line in enumerate(lines):
        if at < len(line):
            return number
        at -= len(line)
    return None


def write_table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Comma separated, with a header; what a row has not stays empty, and no text is a formula."""
    content = io.StringIO(newline="")
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(map(_plain, columns))
    writer.writerows([_plain(row.get(column)) for column in columns] for row in rows)
    return content.getvalue()


def _plain(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets an apostrophe before it; a number is
    none."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def restore_cell(text: str) -> str:
    """What `write_table` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
