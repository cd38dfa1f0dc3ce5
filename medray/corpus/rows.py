"""One row after another, good or bad: what cannot be predicted says why, and nothing is skipped in silence."""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from medray.corpus.sources import Columns, Shard
from medray.data.csv_text import MOST_CHARACTERS, CsvRow, bounded_lines, read_rows
from medray.data.formats import raw_abstracts
from medray.errors import DataError, allowed

_BATCH = 64  # rows of parquet: one text of many megabytes may stand in each and be kept once in the file
_DELIMITERS = {".tsv": "\t", ".tab": "\t", ".psv": "|"}
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
        yield from (_checked(_text_file(shard, path, columns, most), most_characters) for path in shard.paths)
        return
    for raw in _raw(shard, columns, most):
        yield _checked(_row(raw, columns), most_characters)


def values(shard: Shard) -> Iterator[dict[str, Any]]:
    """All columns of the rows that can be read."""
    if shard.form != "texts":
        yield from (dict(raw.values) for raw in _raw(shard, None, MOST_CHARACTERS) if not raw.reason)


def _raw(shard: Shard, columns: Columns | None, most: int) -> Iterator[_Raw]:
    (path,) = shard.paths
    wanted = None if columns is None else [*columns.text, *([columns.id] if columns.id else [])]
    try:
        if shard.form == "parquet":
            yield from _parquet(shard, path, wanted)
        elif shard.form == "csv":
            yield from _delimited(shard, path, wanted, most)
        else:
            yield from _json_lines(shard, path, wanted, most)
    except (OSError, pa.ArrowException) as err:  # of what is packed, damage shows as it is read
        raise DataError(f"{path}: cannot be read to its end: {' '.join(str(err).split())}") from None


def _parquet(shard: Shard, path: str, wanted: list[str] | None) -> Iterator[_Raw]:
    with shard.open_parquet(path) as file:
        _check_columns(path, file.schema_arrow.names, wanted)
        if wanted == []:
            yield from (_Raw(f"{shard.name(path)}:{number}", {}) for number in range(1, file.metadata.num_rows + 1))
            return
        number = 0
        for batch in file.iter_batches(_BATCH, columns=wanted, use_threads=False):
            for row in batch.to_pylist():
                number += 1
                yield _Raw(f"{shard.name(path)}:{number}", row)


def _delimited(shard: Shard, path: str, wanted: list[str] | None, most: int) -> Iterator[_Raw]:
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    delimiter = next((_DELIMITERS[suffix] for suffix in suffixes if suffix in _DELIMITERS), ",")
    # Bytes that are no UTF-8 become surrogates, which `_checked` finds: one such row must not end the file.
    with io.TextIOWrapper(shard.open(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = read_rows(bounded_lines(file, most), delimiter, most)
        header = next(rows, CsvRow(1, 0, []))
        if header.reason:
            raise DataError(f"{path}:1: {header.reason}; the first line must name the columns")
        names = [name.strip() for name in header.values]
        _check_columns(path, names, wanted)
        for row in rows:
            if not row.reason and len(row.values) == len(names):
                yield _Raw(f"{shard.name(path)}:{row.line}", dict(zip(names, row.values, strict=True)))
            elif row.reason or any(map(str.strip, row.values)):
                reason = row.reason or f"has {len(row.values)} values, the header has {len(names)} columns"
                for line in range(row.line, row.line + row.num_lines):  # as many rows as may be lost in it
                    yield _Raw(f"{shard.name(path)}:{line}", {}, reason)


def _json_lines(shard: Shard, path: str, wanted: list[str] | None, most: int) -> Iterator[_Raw]:
    with io.TextIOWrapper(shard.open(path), encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
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
            yield _Raw(where, found) if isinstance(found, dict) else _Raw(where, {}, "not a JSON object")


def _check_columns(path: str, names: list[str], wanted: list[str] | None) -> None:
    for name in wanted or ():
        if name not in names:
            raise DataError(f"{path}: has no column {name!r}; {allowed(name, names)}")
        if names.count(name) > 1:
            raise DataError(f"{path}: the column {name!r} stands twice")


def _row(raw: _Raw, columns: Columns) -> Row:
    if raw.reason:
        return Row(raw.where, "", raw.where, is_made=True, fault=raw.fault, reason=raw.reason)
    given = raw.values.get(columns.id) if columns.id else None
    is_made = given is None or given == ""
    if not is_made and (isinstance(given, bool) or not isinstance(given, str | int)):
        return Row(raw.where, "", raw.where, True, WRONG_TYPE, f"the id is a {type(given).__name__}, not a text or whole number")
    row_id = raw.where if is_made else str(given).strip() or raw.where
    is_made = row_id == raw.where
    parts = []
    for name in columns.text:
        value = raw.values.get(name)
        if value is not None and not isinstance(value, str):
            return Row(row_id, "", raw.where, is_made, WRONG_TYPE, f"{name!r} is a {type(value).__name__}, not a text")
        parts.append((value or "").strip())
    return Row(row_id, " ".join(filter(None, parts)), raw.where, is_made)


def _text_file(shard: Shard, path: str, columns: Columns, most: int) -> Row:
    """As medray writes abstracts where the first line says so; else a whole file is one text, and its path the id."""
    name = shard.name(path)
    try:
        with io.TextIOWrapper(shard.open(path), encoding="utf-8-sig", errors="surrogateescape") as file:
            text = file.read(most)
    except OSError as err:
        raise DataError(f"{path}: cannot be read to its end: {' '.join(str(err).split())}") from None
    if len(text) >= most:
        return Row(name, "", name, is_made=True, fault=TOO_LONG, reason=f"the file is longer than {most} characters")
    if not text.startswith("<ID:"):
        return Row(name, text.strip(), name, is_made=True)
    options = raw_abstracts.Options(name="raw_abstracts", path=shard.root, **({"text": columns.text} if columns.text else {}))
    try:
        found = raw_abstracts.parse(io.StringIO(text), name, PurePosixPath(path).parent.name, options)
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
        fault, reason = TOO_LONG, f"the text has {len(row.text)} characters, at most {most_characters} are read"
    elif not (_is_unicode(row.text) and _is_unicode(row.id)):
        fault, reason = UNREADABLE, "not UTF-8 text"
    if not fault:
        return row
    safe = row.id if _is_unicode(row.id) else row.where
    return Row(safe, "", row.where, row.is_made or safe != row.id, fault, reason.encode("utf-8", "replace").decode())


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
