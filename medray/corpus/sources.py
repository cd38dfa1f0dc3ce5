"""Which files an input is, in a folder or a bucket, and what their columns are called. Knows no model and no Ray."""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from medray import storage
from medray.data import sniff
from medray.data.csv_text import MOST_CHARACTERS
from medray.data.formats.base import columns_of
from medray.errors import ConfigError, DataError, allowed

Form = Literal["parquet", "csv", "jsonl", "texts"]
_FORMS: dict[str, Form] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".psv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "texts",
}
_PACKED = (".gz", ".bz2", ".zst")
_TEXTS_A_SHARD = 10_000
SAMPLE = 1000  # rows that tell columns apart


@dataclass(frozen=True)
class Shard:
    """What one reader reads from beginning to end: a file, or many that hold a text each."""

    number: int
    form: Form
    uri: str
    root: str  # what names are told without
    paths: tuple[str, ...]

    def open(self, path: str) -> IO[bytes]:
        """As a stream, unpacked where its ending says that it is packed."""
        try:
            return io.BufferedReader(_connect(self.uri)[0].open_input_stream(path, compression="detect"))
        except OSError as err:
            raise DataError(f"{path}: cannot be read: {_one_line(err)}") from None

    def open_parquet(self, path: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(_connect(self.uri)[0].open_input_file(path))
        except (OSError, pa.ArrowException) as err:
            raise DataError(f"{path}: cannot be read as parquet: {_one_line(err)}") from None

    def name(self, path: str) -> str:
        return path.removeprefix(self.root).lstrip("/") or PurePosixPath(path).name


@dataclass(frozen=True)
class Source:
    uri: str
    form: Form
    shards: tuple[Shard, ...]
    fingerprint: str  # of names, sizes and times: what was begun with other files is not gone on with


@dataclass(frozen=True)
class Columns:
    """Where texts and ids come from. Without names, files of texts are read as medray writes them, or whole."""

    text: tuple[str, ...] = ()
    id: str | None = None


def find(uri: str) -> Source:
    system, root = _connect(uri)
    try:
        top = system.get_file_info(root)
        if top.type == pa.fs.FileType.NotFound:
            raise DataError(f"{uri}: there is no such file or folder")
        if is_file := top.type == pa.fs.FileType.File:
            held = [top]
        else:
            below = system.get_file_info(pa.fs.FileSelector(root, recursive=True))
            held = [info for info in below if info.type == pa.fs.FileType.File and not _is_hidden(info.path.removeprefix(root))]
    except OSError as err:
        raise DataError(f"{uri}: cannot be listed: {_one_line(err)}") from None
    forms = {info.path: form for info in held if (form := _form(info.path))}
    if len(kinds := sorted(set(forms.values()))) != 1:
        found = f"files of several kinds ({', '.join(kinds)})" if kinds else "no file that can be read"
        raise DataError(f"{uri}: {found}; allowed: one file, or a folder with files of one kind: {', '.join(_FORMS)}")
    chosen = sorted((info for info in held if info.path in forms), key=lambda info: info.path)
    fingerprint = storage.hash_text(f"{info.path} {info.size} {info.mtime_ns}" for info in chosen)
    step = _TEXTS_A_SHARD if kinds[0] == "texts" else 1
    paths = [info.path for info in chosen]
    groups = [tuple(paths[start : start + step]) for start in range(0, len(paths), step)]
    start = str(PurePosixPath(root).parent) if is_file else root
    shards = tuple(Shard(number, kinds[0], uri, start, group) for number, group in enumerate(groups))
    return Source(uri, kinds[0], shards, fingerprint)


def columns(source: Source, sample: Sequence[Mapping[str, Any]], asked: Columns) -> Columns:
    """As asked, else by the names and contents of a few rows, as `medray init` finds them."""
    if source.form == "texts":
        if asked.id:
            raise ConfigError(f"{source.uri}: --id-column does not apply: a file that holds one text says its id itself")
        return asked
    if not sample:
        raise DataError(f"{source.uri}: has no rows")
    values = columns_of(sample, source.uri)
    for option, names in (("--text-column", asked.text), ("--id-column", (asked.id,) if asked.id else ())):
        for name in names:
            if name not in values:
                raise ConfigError(f"{source.uri}: {option} asks for {name!r}; {allowed(name, values)}")
    guessed = sniff.unlabelled(values)
    found = Columns(asked.text or guessed.text, asked.id or guessed.id)
    if not found.text:
        shown = ", ".join(list(values)[:20])
        raise ConfigError(
            f"{source.uri}: which column is the text is not clear; the columns are {shown}: name it with --text-column COLUMN"
        )
    return found


def head(source: Source) -> list[dict[str, Any]]:
    """A few rows as they are, for their columns."""
    from medray.corpus import rows

    sample, num_characters = [], 0
    for row in islice(rows.values(source.shards[0]), SAMPLE):
        sample.append(row)
        num_characters += sum(len(value) for value in row.values() if isinstance(value, str))
        if num_characters >= MOST_CHARACTERS:
            break
    return sample


def _form(path: str) -> Form | None:
    plain = PurePosixPath(path)
    packed = plain.suffix.lower() in _PACKED
    form = _FORMS.get((PurePosixPath(plain.stem) if packed else plain).suffix.lower())
    return None if packed and form == "parquet" else form


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.strip("/").split("/"))


def _connect(uri: str) -> tuple[pa.fs.FileSystem, str]:
    if "://" not in uri:
        return pa.fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    try:
        system, path = pa.fs.FileSystem.from_uri(uri)
    except (OSError, pa.ArrowException) as err:
        raise ConfigError(f"{uri}: cannot be opened: {_one_line(err)}") from None
    return system, path.rstrip("/")


def _one_line(err: Exception) -> str:
    return " ".join(str(err).split())
