"""Rows of an input, good or bad. A row that cannot be predicted has a reason, and none is
dropped."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from medray.batch.shards import Shard, TextColumns
from medray.data.formats import raw_abstracts
from medray.errors import DataError, suggest
from medray.text import dialect
from medray.text.csv_text import MOST_CHARACTERS, CsvRow, bounded_lines, read_rows

_BATCH = 64  # rows of parquet: each may have a text of many megabytes that the file stores once
_HEAD_ROWS, _HEAD_CHARACTERS = 200, 1 << 20  # for the guess of a header
UNREADABLE, WRONG_TYPE, EMPTY, TOO_LONG = "unreadable", "wrong type", "empty", "too long"


@dataclass(frozen=True, slots=True)
class InputRow:
    id: str
    text: str
    where: str  # file:line, or file:row
    is_made: bool = False  # the id comes from file and position, since the row has none
    fault: str = ""  # the kind of fault; the text is then empty
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Raw:
    """A row's values, or the reason why it has none."""

    where: str
    values: Mapping[str, Any]
    reason: str = ""
    fault: str = UNREADABLE


def read(shard: Shard, columns: TextColumns, most_characters: int) -> Iterator[InputRow]:
    """Yield each row of a shard, with a fault where it cannot be predicted."""
    # JSON may encode a character in twelve, and a row has more than its text.
    most = max(MOST_CHARACTERS, 12 * most_characters)
    if shard.form == "texts":
        yield from (
            _check(_text_file(shard, path, columns, most), most_characters) for path in shard.paths
        )
        return
    for raw in _raw(shard, columns, most):
        yield _check(_row(raw, columns), most_characters)


def values(shard: Shard, names: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield all columns of the readable rows. A first row with one of the names is a header."""
    if shard.form != "texts":
        yield from (
            dict(raw.values) for raw in _raw(shard, None, MOST_CHARACTERS, names) if not raw.reason
        )


def check_columns(shard: Shard, columns: TextColumns) -> None:
    """Raise if a parquet file lacks a column. This reads no row."""
    if shard.form == "parquet":
        (path,) = shard.paths
        with shard.open_parquet(path) as file:
            _check_columns(path, file.schema_arrow.names, _names_of(columns))


def _names_of(columns: TextColumns) -> list[str]:
    return [*columns.text, *([columns.id] if columns.id else [])]


def _raw(
    shard: Shard, columns: TextColumns | None, most: int, names: Sequence[str] = ()
) -> Iterator[_Raw]:
    (path,) = shard.paths
    needs = None if columns is None else _names_of(columns)
    try:
        if shard.form == "parquet":
            yield from _read_parquet(shard, path, needs)
        elif shard.form == "csv":
            yield from _read_csv(shard, path, needs, most, names)
        else:
            yield from _read_json_lines(shard, path, columns.text if columns else (), most)
    # Damage of a compressed file appears during the read.
    except (OSError, UnicodeError, pa.ArrowException) as err:
        raise DataError(
            f"{path}: cannot be read to its end: {' '.join(str(err).split())}"
        ) from None


def _read_parquet(shard: Shard, path: str, needs: list[str] | None) -> Iterator[_Raw]:
    with shard.open_parquet(path) as file:
        _check_columns(path, file.schema_arrow.names, needs)
        if needs == []:
            yield from (
                _Raw(f"{shard.name(path)}:{number}", {})
                for number in range(1, file.metadata.num_rows + 1)
            )
            return
        number = 0
        for batch in file.iter_batches(_BATCH, columns=needs, use_threads=False):
            for row in batch.to_pylist():
                number += 1
                yield _Raw(f"{shard.name(path)}:{number}", row)


def _read_csv(
    shard: Shard, path: str, needs: list[str] | None, most: int, names: Sequence[str]
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
        if columns and not dialect.is_header(columns, [row.values for row in top], needs or names):
            columns, top = dialect.default_names(len(columns)), [header, *top]
        _check_columns(path, columns, needs)
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
                # One fault per line, since each line may be a lost row.
                for line in range(row.line, row.line + row.num_lines):
                    yield _Raw(f"{shard.name(path)}:{line}", {}, reason)


def _top(rows: Iterator[CsvRow]) -> list[CsvRow]:
    top: list[CsvRow] = []
    num_characters = 0
    while len(top) < _HEAD_ROWS and num_characters < _HEAD_CHARACTERS and (row := next(rows, None)):
        top.append(row)
        # Values count too: millions may be empty.
        num_characters += len(row.values) + sum(map(len, row.values))
    return top


def _open_text(shard: Shard, path: str, newline: str | None) -> io.TextIOWrapper:
    """Open a file as text. Undecodable bytes become surrogates, which `_check` turns into a fault
    of their row."""
    return io.TextIOWrapper(
        shard.open(path),
        encoding=dialect.codec(shard.encoding),
        errors="surrogateescape",
        newline=newline,
    )


def _read_json_lines(shard: Shard, path: str, text: Sequence[str], most: int) -> Iterator[_Raw]:
    """Yield a row per line. A row may omit empty columns, so a column missing in all rows is an
    error after the last one."""
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
                content = json.loads(line)
            except (ValueError, RecursionError) as err:
                yield _Raw(where, {}, f"not valid JSON: {err}")
                continue
            if not isinstance(content, dict):
                yield _Raw(where, {}, "not a JSON object")
                continue
            if missing:
                missing -= content.keys()
                names = names or dict.fromkeys(content)
            yield _Raw(where, content)
    if names:
        _check_columns(path, list(names), sorted(missing))


def _check_columns(path: str, names: list[str], needs: list[str] | None) -> None:
    for name in needs or ():
        if name not in names:
            raise DataError(f"{path}: has no column {name!r}; {suggest(name, names)}")
        if names.count(name) > 1:
            raise DataError(f"{path}: has the column {name!r} twice; rename one of them")


def _row(raw: _Raw, columns: TextColumns) -> InputRow:
    if raw.reason:
        return InputRow(raw.where, "", raw.where, is_made=True, fault=raw.fault, reason=raw.reason)
    value = raw.values.get(columns.id) if columns.id else None
    is_made = value is None or value == ""
    if not is_made and (isinstance(value, bool) or not isinstance(value, str | int)):
        return InputRow(
            raw.where,
            "",
            raw.where,
            True,
            WRONG_TYPE,
            f"the id is a {type(value).__name__}, not a text or whole number",
        )
    row_id = raw.where if is_made else str(value).strip() or raw.where
    is_made = row_id == raw.where
    parts = []
    for name in columns.text:
        value = raw.values.get(name)
        if value is not None and not isinstance(value, str):
            return InputRow(
                row_id,
                "",
                raw.where,
                is_made,
                WRONG_TYPE,
                f"{name!r} is a {type(value).__name__}, not a text",
            )
        parts.append((value or "").strip())
    return InputRow(row_id, " ".join(filter(None, parts)), raw.where, is_made)


def _text_file(shard: Shard, path: str, columns: TextColumns, most: int) -> InputRow:
    """Read a file in medray's own layout of abstracts, or as one text whose id is its path."""
    name = shard.name(path)
    try:
        with _open_text(shard, path, newline=None) as file:
            text = file.read(most)
    except (OSError, UnicodeError) as err:
        raise DataError(
            f"{path}: cannot be read to its end: {' '.join(str(err).split())}"
        ) from None
    if len(text) >= most:
        return InputRow(
            name,
            "",
            name,
            is_made=True,
            fault=TOO_LONG,
            reason=f"the file is longer than {most} characters",
        )
    if not text.startswith("<ID:"):
        return InputRow(name, text.strip(), name, is_made=True)
    options = raw_abstracts.Options(
        name="raw_abstracts", path=shard.root, **({"text": columns.text} if columns.text else {})
    )
    try:
        example = raw_abstracts.parse(
            io.StringIO(text), name, PurePosixPath(path).parent.name, options
        )
    except DataError as err:
        return InputRow(name, "", name, is_made=True, fault=UNREADABLE, reason=str(err))
    return InputRow(example.id, example.text, name)


def _check(row: InputRow, most_characters: int) -> InputRow:
    fault = reason = ""
    if row.fault:
        fault, reason = row.fault, row.reason
    elif not row.text:
        fault, reason = EMPTY, "the text is empty"
    elif len(row.text) > most_characters:
        fault, reason = (
            TOO_LONG,
            f"the text has {len(row.text)} characters, and the limit is {most_characters}",
        )
    elif not (_is_unicode(row.text) and _is_unicode(row.id)):
        fault, reason = UNREADABLE, "not UTF-8 text"
    if not fault:
        return row
    safe = row.id if _is_unicode(row.id) else row.where
    return InputRow(
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
