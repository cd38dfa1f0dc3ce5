"""Which files an input is, in a folder or a bucket, and what their columns are called. Knows no
model and no Ray."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs

from medray.batch.shards import FORMS, PACKED, Columns, Form, Shard, connect, one_line
from medray.data.columns import prediction_columns
from medray.data.formats.base.parsing import columns_of
from medray.errors import ConfigError, DataError, suggest
from medray.storage import files
from medray.text import dialect
from medray.text.csv_text import MOST_CHARACTERS, read_rows

_TEXTS_A_SHARD = 10_000
SAMPLE = 1000  # rows that tell columns apart
_GUESS_BYTES, _GUESS_FILES = 16 << 20, 100  # that tell the encoding
_TABLE_BYTES = 1 << 16  # that tell a table from a text


@dataclass(frozen=True)
class Source:
    uri: str
    form: Form
    shards: tuple[Shard, ...]
    encoding: str
    fingerprint: (
        str  # of names, sizes and times: what was begun with other files is not gone on with
    )


def find(uri: str, encoding: str | None = None, delimiter: str | None = None) -> Source:
    """The files of an input. Where no encoding is given, the beginning of the first ones tells that
    of all."""
    system, root = connect(uri)
    try:
        top = system.get_file_info(root)
        if top.type == pa.fs.FileType.NotFound:
            raise DataError(f"{uri}: there is no such file or folder")
        if is_file := top.type == pa.fs.FileType.File:
            held = [top]
        else:
            below = system.get_file_info(pa.fs.FileSelector(root, recursive=True))
            held = [
                info
                for info in below
                if info.type == pa.fs.FileType.File and not _is_hidden(info.path.removeprefix(root))
            ]
    except OSError as err:
        raise DataError(f"{uri}: cannot be listed: {one_line(err)}") from None
    forms = {info.path: form for info in held if (form := _form(info.path))}
    if len(kinds := sorted(set(forms.values()))) != 1:
        if not kinds and any(dialect.is_spreadsheet(info.path) for info in held):
            raise DataError(f"{uri}: {dialect.SAVE_AS_CSV}")
        found = (
            f"files of several kinds ({', '.join(kinds)})" if kinds else "no file that can be read"
        )
        raise DataError(
            f"{uri}: {found}; allowed: one file, or a folder with files of one kind: "
            f"{', '.join(FORMS)}"
        )
    chosen = sorted((info for info in held if info.path in forms), key=lambda info: info.path)
    fingerprint = files.hash_text(f"{info.path} {info.size} {info.mtime_ns}" for info in chosen)
    step = _TEXTS_A_SHARD if kinds[0] == "texts" else 1
    paths = [info.path for info in chosen]
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
        return "utf-8"  # damage, which the reading names


def _is_table(shard: Shard) -> bool:
    """Whether a file that could be one text is a table: every row has as many values as a first one
    with a known name."""
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


def columns(source: Source, sample: Sequence[Mapping[str, Any]], asked: Columns) -> Columns:
    """As asked, else by the names and contents of a few rows, as `medray init` finds them."""
    if source.form == "texts":
        if asked.id:
            raise ConfigError(
                f"{source.uri}: --id-column does not apply: a file that holds one text says its "
                "id itself"
            )
        return asked
    if not sample:
        raise DataError(f"{source.uri}: has no rows")
    values = columns_of(sample, source.uri)
    for option, names in (
        ("--text-column", asked.text),
        ("--id-column", (asked.id,) if asked.id else ()),
    ):
        for name in names:
            if name not in values:
                raise ConfigError(
                    f"{source.uri}: {option} asks for {name!r}; {suggest(name, values)}"
                )
    guessed = prediction_columns(values)
    found = Columns(asked.text or guessed.text, asked.id or guessed.id)
    if not found.text:
        shown = ", ".join(list(values)[:20])
        raise ConfigError(
            f"{source.uri}: which column is the text is not clear; the columns are {shown}: name "
            "it with --text-column COLUMN"
        )
    return found


def head(source: Source, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A few rows as they are, for their columns; a first row with one of the names is a header."""
    from medray.batch import rows

    sample, num_characters = [], 0
    for row in islice(rows.values(source.shards[0], names), SAMPLE):
        sample.append(row)
        num_characters += sum(len(value) for value in row.values() if isinstance(value, str))
        if num_characters >= MOST_CHARACTERS:
            break
    return sample


def _form(path: str) -> Form | None:
    plain = PurePosixPath(path)
    packed = plain.suffix.lower() in PACKED
    form = FORMS.get((PurePosixPath(plain.stem) if packed else plain).suffix.lower())
    return None if packed and form == "parquet" else form


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.strip("/").split("/"))
