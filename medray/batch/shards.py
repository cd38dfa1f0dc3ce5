"""Shards of an input: files that one reader reads from beginning to end, and the names of its
columns."""

import io
import os
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Literal

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from medray.errors import ConfigError, DataError

InputFormat = Literal["parquet", "csv", "jsonl", "texts"]
FORMAT_OF_SUFFIX: dict[str, InputFormat] = {
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
COMPRESSION_SUFFIXES = (".gz", ".bz2", ".zst")


@dataclass(frozen=True)
class Shard:
    """Files that one reader reads from beginning to end: one table, or many files with a text
    each."""

    number: int
    form: InputFormat
    uri: str
    root: str  # prefix that `name` removes
    paths: tuple[str, ...]
    encoding: str = "utf-8"
    delimiter: str | None = None  # None: guess it from the file

    def open(self, path: str) -> IO[bytes]:
        """Open a file as a stream of bytes, decompressed according to its suffix."""
        try:
            return io.BufferedReader(
                connect(self.uri)[0].open_input_stream(path, compression="detect")
            )
        except OSError as err:
            raise DataError(f"{path}: cannot be read: {one_line(err)}") from None

    def open_parquet(self, path: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(connect(self.uri)[0].open_input_file(path))
        except (OSError, pa.ArrowException) as err:
            raise DataError(f"{path}: cannot be read as parquet: {one_line(err)}") from None

    def name(self, path: str) -> str:
        return path.removeprefix(self.root).lstrip("/") or PurePosixPath(path).name


@dataclass(frozen=True)
class TextColumns:
    """The columns of text and id. Without names, a text file is read in medray's own layout, or as
    one text."""

    text: tuple[str, ...] = ()
    id: str | None = None


def connect(uri: str) -> tuple[pa.fs.FileSystem, str]:
    if "://" not in uri:
        return pa.fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    try:
        system, path = pa.fs.FileSystem.from_uri(uri)
    except (OSError, pa.ArrowException) as err:
        raise ConfigError(f"{uri}: cannot be opened: {one_line(err)}") from None
    return system, path.rstrip("/")


def one_line(err: Exception) -> str:
    return " ".join(str(err).split())
