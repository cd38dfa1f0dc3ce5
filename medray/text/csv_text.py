"""Reads delimited text within bounds, and writes tables in which a spreadsheet runs no formula.

A quote that never closes makes one field of all rows after it. So each row has its number of lines,
and a row that cannot be right has a reason that names the quote. No reason repeats the contents of
the file."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, TextIO

from medray.text.dialect import declared_delimiter

MOST_CHARACTERS = 16 << 20  # of a line or a row: about a hundred times the longest article
MOST_LINES = 10_000  # of a row: a hospital's longest notes have about 1,000 lines of 80 characters
# A field with so many lines that all look like rows has swallowed rows. The second bound is for
# rows of two values, since a text may list findings in that form.
_ROWS_INSIDE = 20
_PAIRS_INSIDE = 100
_FAULTS = {  # messages of the csv module, and ours
    "unexpected end of data": "does not close",
    (
        "new-line character seen in unquoted field - do you need to open the file in "
        "universal-newline mode?"
    ): ("holds a line end of CR alone; end lines by LF or CRLF"),
    **{f"'{mark}' expected after '\"'": "goes on where its quote closes" for mark in ",\t|;"},
}
_FORMULA = re.compile(r"['\s]*+(?![+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?\s*$)[=+\-@＝＋－＠]")


class CsvRow(NamedTuple):  # a dataclass would be slow for millions of rows
    line: int  # the first one
    num_lines: int
    values: list[str]
    reason: str = ""  # why the row cannot be read; its lines are skipped


def bounded_lines(file: TextIO, most: int = MOST_CHARACTERS) -> Iterator[str]:
    """Yield the lines of a file, each cut to its first `most` characters."""
    while line := file.readline(most):
        yield line
        while len(line) >= most and not line.endswith(("\n", "\r")):
            line = file.readline(most)


def read_rows(
    lines: Iterable[str], delimiter: str, most: int = MOST_CHARACTERS
) -> Iterator[CsvRow]:
    """Yield every row, blank rows too. After a row that cannot be read, reading goes on behind its
    lines. A first line `sep=;` is not a row."""
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long document
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
    """Feeds lines to a csv reader, and raises csv.Error if one row gets too long."""

    def __init__(self, lines: Iterable[str], most: int) -> None:
        self.row: list[str] = []  # the lines of the current row
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
    """Return a fault if the lines inside a field are rows that a stray quote swallowed: each has as
    many values as the header.

    Lists in a text have a blank after each comma. In rows of that form no quote begins a field, so
    none was swallowed."""
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
    """Return the index of the line whose quote opens the first field that does not end at a
    delimiter, or None."""
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
    """Return a table separated by commas, with a header. Missing values stay empty, and no text is
    a formula."""
    content = io.StringIO(newline="")
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(map(_plain, columns))
    writer.writerows([_plain(row.get(column)) for column in columns] for row in rows)
    return content.getvalue()


def _plain(value: Any) -> Any:
    """Put an apostrophe before a text that a spreadsheet would run as a formula; a number is not
    one."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def restore_cell(text: str) -> str:
    """Return the text that `write_table` wrote as this cell."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
