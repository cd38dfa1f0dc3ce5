"""The files of an input, in a folder or a bucket, and the names of their columns. It knows no model
and no Ray."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs

from medray.batch.shards import (
    COMPRESSION_SUFFIXES,
    FORMAT_OF_SUFFIX,
    InputFormat,
    Shard,
    TextColumns,
    connect,
    one_line,
)
from medray.data.columns import prediction_columns
from medray.data.formats.base.parsing import columns_of
from medray.errors import ConfigError, DataError, suggest
from medray.storage import files
from medray.text import dialect
from medray.text.csv_text import MOST_CHARACTERS, read_rows

_TEXTS_PER_SHARD = 10_000
SAMPLE = 1000  # rows for the guess of columns
_GUESS_BYTES, _GUESS_FILES = 16 << 20, 100  # for the guess of the encoding
_TABLE_BYTES = 1 << 16  # for the guess whether a file is a table


@dataclass(frozen=True)
class Source:
    uri: str
    form: InputFormat
    shards: tuple[Shard, ...]
    encoding: str
    fingerprint: str  # of names, sizes and times: a resume needs the same files


def find(uri: str, encoding: str | None = None, delimiter: str | None = None) -> Source:
    """List the files of an input. Without an encoding, guess it from the beginning of the first
    files."""
    system, root = connect(uri)
    try:
        top = system.get_file_info(root)
        if top.type == pa.fs.FileType.NotFound:
            raise DataError(f"{uri}: does not exist; name a file or folder")
        if is_file := top.type == pa.fs.FileType.File:
            infos = [top]
        else:
            below = system.get_file_info(pa.fs.FileSelector(root, recursive=True))
            infos = [
                info
                for info in below
                if info.type == pa.fs.FileType.File and not _is_hidden(info.path.removeprefix(root))
            ]
    except OSError as err:
        raise DataError(f"{uri}: cannot be listed: {one_line(err)}") from None
    forms = {info.path: form for info in infos if (form := _form(info.path))}
    if len(kinds := sorted(set(forms.values()))) != 1:
        if not kinds and any(dialect.is_spreadsheet(info.path) for info in infos):
            raise DataError(f"{uri}: {dialect.SAVE_AS_CSV}")
        problem = f"files of several kinds ({', '.join(kinds)})" if kinds else "no readable file"
        raise DataError(
            f"{uri}: has {problem}; allowed: one file, or a folder with files of one kind: "
            f"{', '.join(FORMAT_OF_SUFFIX)}"
        )
    inputs = sorted((info for info in infos if info.path in forms), key=lambda info: info.path)
    fingerprint = files.hash_text(f"{info.path} {info.size} {info.mtime_ns}" for info in inputs)
    step = _TEXTS_PER_SHARD if kinds[0] == "texts" else 1
    paths = [info.path for info in inputs]
    groups = [tuple(paths[start : start + step]) for start in range(0, len(paths), step)]
    start = str(PurePosixPath(root).parent) if is_file else root
    shards = [
        Shard(number, kinds[0], uri, start, group, delimiter=delimiter)
        for number, group in enumerate(groups)
    ]
    if kinds[0] in ("csv", "texts"):
        encoding = encoding or _guess_encoding(shards[0])
        shards = [replace(shard, encoding=encoding) for shard in shards]
        if is_file and kinds[0] == "texts" and _is_table(shards[0]):
            shards = [replace(shards[0], form="csv")]
    elif encoding or delimiter:
        raise ConfigError(
            f"{uri}: --encoding and --delimiter do not apply: {kinds[0]} files have one encoding "
            "and no delimiter"
        )
    return Source(uri, shards[0].form, tuple(shards), shards[0].encoding, fingerprint)


def _guess_encoding(shard: Shard) -> str:
    def chunks() -> Iterator[bytes]:
        left = _GUESS_BYTES
        for path in shard.paths[:_GUESS_FILES]:
            with shard.open(path) as file:
                while left > 0 and (chunk := file.read(min(left, 1 << 20))):
                    left -= len(chunk)
                    yield chunk

    try:
        return dialect.guess_encoding(chunks())
    except OSError:
        return "utf-8"  # reading reports the damage


def _is_table(shard: Shard) -> bool:
    """Return whether a text file is a table: a first row with a known name, and rows of equal
    length."""
    try:
        with shard.open(shard.paths[0]) as file:
            head = file.read(_TABLE_BYTES)
    except OSError:
        return False
    text = head.decode(dialect.codec(shard.encoding), errors="replace")
    lines = io.StringIO(text, newline="").readlines()[: None if len(head) < _TABLE_BYTES else -1]
    if not lines or not (delimiter := shard.delimiter or dialect.likely_delimiter(lines[0], "")):
        return False
    rows = [row.values for row in read_rows(lines, delimiter) if any(row.values)]
    return (
        len(rows) > 1
        and len(rows[0]) > 1
        and {len(row) for row in rows} == {len(rows[0])}
        and dialect.has_known_name(rows[0])
    )


def columns(
    source: Source, sample: Sequence[Mapping[str, Any]], request: TextColumns
) -> TextColumns:
    """Return the requested columns, or guess them from a few rows, as `medray init` does."""
    if source.form == "texts":
        if request.id:
            raise ConfigError(
                f"{source.uri}: --id-column does not apply to files with one text each; remove it"
            )
        return request
    if not sample:
        raise DataError(f"{source.uri}: has no rows")
    values = columns_of(sample, source.uri)
    for option, names in (
        ("--text-column", request.text),
        ("--id-column", (request.id,) if request.id else ()),
    ):
        for name in names:
            if name not in values:
                raise ConfigError(
                    f"{source.uri}: {option} {name!r} is not a column; {suggest(name, values)}"
                )
    guesses = prediction_columns(values)
    result = TextColumns(request.text or guesses.text, request.id or guesses.id)
    if not result.text:
        names_text = ", ".join(list(values)[:20])
        raise ConfigError(
            f"{source.uri}: has no clear text column among {names_text}; name it by --text-column "
            "COLUMN"
        )
    return result


def head(source: Source, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the values of a few rows. A first row with one of the names is a header."""
    from medray.batch import rows

    sample, num_characters = [], 0
    for row in islice(rows.values(source.shards[0], names), SAMPLE):
        sample.append(row)
        num_characters += sum(len(value) for value in row.values() if isinstance(value, str))
        if num_characters >= MOST_CHARACTERS:
            break
    return sample


def _form(path: str) -> InputFormat | None:
    plain = PurePosixPath(path)
    is_compressed = plain.suffix.lower() in COMPRESSION_SUFFIXES
    form = FORMAT_OF_SUFFIX.get(
        (PurePosixPath(plain.stem) if is_compressed else plain).suffix.lower()
    )
    return None if is_compressed and form == "parquet" else form


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.strip("/").split("/"))
