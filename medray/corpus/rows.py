"""One row after another, good or bad: what cannot be predicted says why, and nothing is skipped in silence."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

from medray.corpus.sources import Columns, Shard
from medray.data.formats import raw_abstracts
from medray.errors import DataError, allowed

_BATCH = 1024
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


def read(shard: Shard, columns: Columns, most_characters: int) -> Iterator[Row]:
    if shard.form == "texts":
        yield from (_checked(_text_file(shard, path, columns), most_characters) for path in shard.paths)
        return
    for raw in _raw(shard, columns):
        yield _checked(_row(raw, columns), most_characters)


def values(shard: Shard) -> Iterator[dict[str, Any]]:
    """All columns of the rows that can be read."""
    if shard.form != "texts":
        yield from (dict(raw.values) for raw in _raw(shard, None) if not raw.reason)


def _raw(shard: Shard, columns: Columns | None) -> Iterator[_Raw]:
    (path,) = shard.paths
    reader = {"parquet": _parquet, "csv": _delimited, "jsonl": _json_lines}[shard.form]
    return reader(shard, path, None if columns is None else [*columns.text, *([columns.id] if columns.id else [])])


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


def _delimited(shard: Shard, path: str, wanted: list[str] | None) -> Iterator[_Raw]:
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB a field, is less than a long document
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    delimiter = next((_DELIMITERS[suffix] for suffix in suffixes if suffix in _DELIMITERS), ",")
    # Bytes that are no UTF-8 become surrogates, which `_checked` finds: one such row must not end the file.
    with io.TextIOWrapper(shard.open(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(rows, ())]
        _check_columns(path, names, wanted)
        while True:
            where = f"{shard.name(path)}:{rows.line_num + 1}"
            try:
                found = next(rows)
            except StopIteration:
                return
            except csv.Error as err:
                yield _Raw(where, {}, f"the row that starts here: {err}")
                continue
            if len(found) == len(names):
                yield _Raw(where, dict(zip(names, found, strict=True)))
            elif any(map(str.strip, found)):
                yield _Raw(where, {}, f"has {len(found)} values, the header has {len(names)} columns")


def _json_lines(shard: Shard, path: str, wanted: list[str] | None) -> Iterator[_Raw]:
    with io.TextIOWrapper(shard.open(path), encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{shard.name(path)}:{number}"
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
        return Row(raw.where, "", raw.where, is_made=True, fault=UNREADABLE, reason=raw.reason)
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


def _text_file(shard: Shard, path: str, columns: Columns) -> Row:
    """As medray writes abstracts where the first line says so; else a whole file is one text, and its path the id."""
    name = shard.name(path)
    with io.TextIOWrapper(shard.open(path), encoding="utf-8-sig", errors="surrogateescape") as lines:
        first = next(lines, "")
        if not first.startswith("<ID:"):
            return Row(name, "".join([first, *lines]).strip(), name, is_made=True)
        options = raw_abstracts.Options(name="raw_abstracts", path=shard.root, **({"text": columns.text} if columns.text else {}))
        try:
            found = raw_abstracts.parse(chain([first], lines), name, PurePosixPath(path).parent.name, options)
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
