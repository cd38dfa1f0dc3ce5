"""Shards of an input: the files that one reader reads from beginning to end, and what its columns
are called."""

import io
import os
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Literal

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from medray.errors import ConfigError, DataError

Form = Literal["parquet", "csv", "jsonl", "texts"]
FORMS: dict[str, Form] = {
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
PACKED = (".gz", ".bz2", ".zst")


@dataclass(frozen=True)
class Shard:
    """What one reader reads from beginning to end: a file, or many that hold a text each."""

    number: int
    form: Form
    uri: str
    root: str  # what names are told without
    paths: tuple[str, ...]
    encoding: str = "utf-8"
    delimiter: str | None = None  # by the file itself where not given

    def open(self, path: str) -> IO[bytes]:
        """As a stream, unpacked where its ending says that it is packed."""
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
class Columns:
    """Where texts and ids come from. Without names, files of texts are read as medray writes them,
    or whole."""

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
