"""One row after another, good or bad: what cannot be predicted says why, and nothing is skipped in
silence."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from medray.batch.shards import Columns, Shard
from medray.data.formats import raw_abstracts
from medray.errors import DataError, suggest
from medray.text import dialect
from medray.text.csv_text import MOST_CHARACTERS, CsvRow, bounded_lines, read_rows

_BATCH = (
    64  # rows of parquet: one text of many megabytes may stand in each and be kept once in the file
)
_HEAD_ROWS, _HEAD_CHARACTERS = 200, 1 << 20  # that tell whether the first row is a header
UNREADABLE, WRONG_TYPE, EMPTY, TOO_LONG = "unreadable", "wrong type", "empty", "too long"


@dataclass(frozen=True, slots=True)
class Row:
    id: str
    text: str
    where: str  # file:line, or file:row
    is_made: bool = False  # the id: from file and position, where the row has none
    fault: str = ""  # the kind of what is wrong; the text is then left out
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Raw:
    """A row's values, or why there are none."""

    where: str
    values: Mapping[str, Any]
    reason: str = ""
    fault: str = UNREADABLE


def read(shard: Shard, columns: Columns, most_characters: int) -> Iterator[Row]:
    # JSON may write a character in twelve, and a row has more than its text.
    most = max(MOST_CHARACTERS, 12 * most_characters)
    if shard.form == "texts":
        yield from (
            _checked(_text_file(shard, path, columns, most), most_characters)
            for path in shard.paths
        )
        return
    for raw in _raw(shard, columns, most):
        yield _checked(_row(raw, columns), most_characters)


def values(shard: Shard, names: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """All columns of the rows that can be read; a first row with one of the names is a header."""
    if shard.form != "texts":
        yield from (
            dict(raw.values) for raw in _raw(shard, None, MOST_CHARACTERS, names) if not raw.reason
        )


def check_columns(shard: Shard, columns: Columns) -> None:
    """What of a table in parquet tells without its rows."""
    if shard.form == "parquet":
        (path,) = shard.paths
        with shard.open_parquet(path) as file:
            _check_columns(path, file.schema_arrow.names, _wanted(columns))


def _wanted(columns: Columns) -> list[str]:
    return [*columns.text, *([columns.id] if columns.id else [])]


def _raw(
    shard: Shard, columns: Columns | None, most: int, names: Sequence[str] = ()
) -> Iterator[_Raw]:
    (path,) = shard.paths
    wanted = None if columns is None else _wanted(columns)
    try:
        if shard.form == "parquet":
            yield from _parquet(shard, path, wanted)
        elif shard.form == "csv":
            yield from _delimited(shard, path, wanted, most, names)
        else:
            yield from _json_lines(shard, path, columns.text if columns else (), most)
    except (
        OSError,
        UnicodeError,
        pa.ArrowException,
    ) as err:  # of what is packed, damage shows as it is read
        raise DataError(
            f"{path}: cannot be read to its end: {' '.join(str(err).split())}"
        ) from None


def _parquet(shard: Shard, path: str, wanted: list[str] | None) -> Iterator[_Raw]:
    with shard.open_parquet(path) as file:
        _check_columns(path, file.schema_arrow.names, wanted)
        if wanted == []:
            yield from (
                _Raw(f"{shard.name(path)}:{number}", {})
                for number in range(1, file.metadata.num_rows + 1)
            )
            return
        number = 0
        for batch in file.iter_batches(_BATCH, columns=wanted, use_threads=False):
            for row in batch.to_pylist():
                number += 1
                yield _Raw(f"{shard.name(path)}:{number}", row)


def _delimited(
    shard: Shard, path: str, wanted: list[str] | None, most: int, names: Sequence[str]
) -> Iterator[_Raw]:
    endings = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    ending = next((suffix for suffix in endings if suffix in dialect.USUAL_DELIMITERS), "")
    with _open_text(shard, path, newline="") as file:
        lines = bounded_lines(file, most)
        first = next(lines, "")
        delimiter = shard.delimiter or dialect.likely_delimiter(first, ending) or ","
        rows = read_rows(chain([first], lines) if first else lines, delimiter, most)
        header = next(rows, CsvRow(1, 0, []))
        if header.reason:
            raise DataError(f"{path}:1: {header.reason}; the first line must name the columns")
        columns, top = list(map(dialect.plain_name, header.values)), _top(rows)
        if columns and not dialect.is_header(columns, [row.values for row in top], wanted or names):
            columns, top = dialect.default_names(len(columns)), [header, *top]
        _check_columns(path, columns, wanted)
        for row in chain(top, rows):
            if not row.reason and len(row.values) == len(columns):
                yield _Raw(
                    f"{shard.name(path)}:{row.line}", dict(zip(columns, row.values, strict=True))
                )
            elif row.reason or any(map(str.strip, row.values)):
                reason = (
                    row.reason
                    or f"has {len(row.values)} values, the header has {len(columns)} columns"
                )
                for line in range(
                    row.line, row.line + row.num_lines
                ):  # as many rows as may be lost in it
                    yield _Raw(f"{shard.name(path)}:{line}", {}, reason)


def _top(rows: Iterator[CsvRow]) -> list[CsvRow]:
    top: list[CsvRow] = []
    num_characters = 0
    while len(top) < _HEAD_ROWS and num_characters < _HEAD_CHARACTERS and (row := next(rows, None)):
        top.append(row)
        num_characters += len(row.values) + sum(
            map(len, row.values)
        )  # there may be millions of empty ones
    return top


def _open_text(shard: Shard, path: str, newline: str | None) -> io.TextIOWrapper:
    """Bytes that the encoding does not have become surrogates, which `_checked` finds: one such row
    must not end the file."""
    return io.TextIOWrapper(
        shard.open(path),
        encoding=dialect.codec(shard.encoding),
        errors="surrogateescape",
        newline=newline,
    )


def _json_lines(shard: Shard, path: str, text: Sequence[str], most: int) -> Iterator[_Raw]:
    """A column that no row has is an error behind the last one: a row may leave out what is
    empty."""
    missing, names = set(text), dict[str, None]()
    with _open_text(shard, path, newline="\n") as file:
        for number, line in enumerate(bounded_lines(file, most), 1):
            where = f"{shard.name(path)}:{number}"
            if len(line) >= most:
                yield _Raw(where, {}, f"the line is longer than {most} characters", TOO_LONG)
                continue
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as err:
                yield _Raw(where, {}, f"not valid JSON: {err}")
                continue
            if not isinstance(found, dict):
                yield _Raw(where, {}, "not a JSON object")
                continue
            if missing:
                missing -= found.keys()
                names = names or dict.fromkeys(found)
            yield _Raw(where, found)
    if names:
        _check_columns(path, list(names), sorted(missing))


def _check_columns(path: str, names: list[str], wanted: list[str] | None) -> None:
    for name in wanted or ():
        if name not in names:
            raise DataError(f"{path}: has no column {name!r}; {suggest(name, names)}")
        if names.count(name) > 1:
            raise DataError(f"{path}: the column {name!r} stands twice")


def _row(raw: _Raw, columns: Columns) -> Row:
    if raw.reason:
        return Row(raw.where, "", raw.where, is_made=True, fault=raw.fault, reason=raw.reason)
    given = raw.values.get(columns.id) if columns.id else None
    is_made = given is None or given == ""
    if not is_made and (isinstance(given, bool) or not isinstance(given, str | int)):
        return Row(
            raw.where,
            "",
            raw.where,
            True,
            WRONG_TYPE,
            f"the id is a {type(given).__name__}, not a text or whole number",
        )
    row_id = raw.where if is_made else str(given).strip() or raw.where
    is_made = row_id == raw.where
    parts = []
    for name in columns.text:
        value = raw.values.get(name)
        if value is not None and not isinstance(value, str):
            return Row(
                row_id,
                "",
                raw.where,
                is_made,
                WRONG_TYPE,
                f"{name!r} is a {type(value).__name__}, not a text",
            )
        parts.append((value or "").strip())
    return Row(row_id, " ".join(filter(None, parts)), raw.where, is_made)


def _text_file(shard: Shard, path: str, columns: Columns, most: int) -> Row:
    """As medray writes abstracts where the first line says so; else a whole file is one text, and
    its path the id."""
    name = shard.name(path)
    try:
        with _open_text(shard, path, newline=None) as file:
            text = file.read(most)
    except (OSError, UnicodeError) as err:
        raise DataError(
            f"{path}: cannot be read to its end: {' '.join(str(err).split())}"
        ) from None
    if len(text) >= most:
        return Row(
            name,
            "",
            name,
            is_made=True,
            fault=TOO_LONG,
            reason=f"the file is longer than {most} characters",
        )
    if not text.startswith("<ID:"):
        return Row(name, text.strip(), name, is_made=True)
    options = raw_abstracts.Options(
        name="raw_abstracts", path=shard.root, **({"text": columns.text} if columns.text else {})
    )
    try:
        found = raw_abstracts.parse(
            io.StringIO(text), name, PurePosixPath(path).parent.name, options
        )
    except DataError as err:
        return Row(name, "", name, is_made=True, fault=UNREADABLE, reason=str(err))
    return Row(found.id, found.text, name)


def _checked(row: Row, most_characters: int) -> Row:
    fault = reason = ""
    if row.fault:
        fault, reason = row.fault, row.reason
    elif not row.text:
        fault, reason = EMPTY, "the text is empty"
    elif len(row.text) > most_characters:
        fault, reason = (
            TOO_LONG,
            f"the text has {len(row.text)} characters, at most {most_characters} are read",
        )
    elif not (_is_unicode(row.text) and _is_unicode(row.id)):
        fault, reason = UNREADABLE, "not UTF-8 text"
    if not fault:
        return row
    safe = row.id if _is_unicode(row.id) else row.where
    return Row(
        safe,
        "",
        row.where,
        row.is_made or safe != row.id,
        fault,
        reason.encode("utf-8", "replace").decode(),
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
