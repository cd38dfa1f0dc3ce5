"""Parquet and Arrow tables: a file, a folder of files, or what `datasets` saved. They are read in
batches.

Labels that `datasets` stores as numbers get their names back. The split of a row is a column, or
the name of the row's file or folder."""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from pydantic import Field

from medray.data.formats import jsonl
from medray.data.formats.base.parsing import first_problem, refuse_existing
from medray.data.formats.base.protocol import ColumnOptions, Layout
from medray.data.split import GIVEN_NAMES
from medray.errors import DataError
from medray.storage import files
from medray.types import Example

_ENDINGS = (".parquet", ".arrow")
BATCH = 1024
# Rows converted at a time. A file may store a text of many megabytes once for many rows, and each
# row becomes a copy.
_TEXTS = 64
TableRow = dict[str, Any]


class Options(ColumnOptions):
    name: Literal["tables"]
    label: str | None = Field(
        "label", description="column of the label, or of a list of labels; null for unlabelled rows"
    )
    id: str | None = Field(None, description="column of the row's id; without it, the row's number")
    split: str | None = Field(
        None,
        description=(
            "column that says train, validation or test; without it, names of files and folders "
            "count"
        ),
    )


def read(options: Options) -> Iterator[Example]:
    number = 0
    for path, side in _files(Path(options.path)):
        own_options = with_split(options, side)
        for place, row in enumerate(_rows(path), 1):
            number += 1
            yield example(row, number, own_options, side, f"{path}:{place}")


def with_split(options: Options, side: str | None) -> Options:
    """Return options for rows whose side comes from the file's name, unless a column gives it."""
    return (
        options if side is None or options.split else options.model_copy(update={"split": _SPLIT})
    )


def example(row: TableRow, number: int, options: Options, side: str | None, where: str) -> Example:
    if options.split == _SPLIT:
        row = row | {_SPLIT: side}
    return jsonl.example(row, number, options, where)  # type: ignore[arg-type]


def write(examples: Iterable[Example], options: Options) -> None:
    """Write a table. Ids, labels and sides get a column even if the options name none, so that
    nothing is lost."""
    path = Path(options.path)
    refuse_existing(path)
    if path.suffix.lower() not in _ENDINGS:
        raise DataError(
            f"{path}: the ending is unknown; give a path that ends with {' or '.join(_ENDINGS)}"
        )
    rows, field = list(examples), options.output_column()
    several = any(len(example.labels) != 1 for example in rows)
    records = []
    for example in rows:
        row: TableRow = {options.id or "id": example.id, field: example.text}
        if options.label or any(other.labels for other in rows):
            row[options.label or "label"] = list(example.labels) if several else example.labels[0]
        if any(other.split for other in rows):
            row[options.split or "split"] = example.split
        if repeated_names := sorted(row.keys() & example.metadata.keys()):
            raise DataError(
                f"{example.where or example.id}: metadata {repeated_names[0]!r} has the name of "
                "another column; rename the metadata"
            )
        records.append(row | dict(example.metadata))
    names = dict.fromkeys(name for row in records for name in row)
    table = pa.table({name: [row.get(name) for row in records] for name in names})
    sink = pa.BufferOutputStream()
    if path.suffix.lower() == ".parquet":
        pq.write_table(table, sink)
    else:
        with pa.ipc.new_file(sink, table.schema) as file:
            file.write_table(table)
    if not files.create(path, sink.getvalue().to_pybytes()):
        refuse_existing(path)


def check(options: Options) -> list[str]:
    return first_problem(read(options), f"{options.path}: has no rows")


def sniff(path: Path) -> Layout | None:
    if path.suffix.lower() not in _ENDINGS if path.is_file() else not _below(path):
        return None
    rows = [row for file, _ in _files(path) for row in _rows(file)]
    names = dict.fromkeys(name for row in rows for name in row)
    return Layout(
        {"name": "tables", "path": str(path)},
        {name: [row.get(name) for row in rows] for name in names},
    )


_SPLIT = "\0split"  # a column for the side, whose name no table has


def _files(path: Path) -> list[tuple[Path, str | None]]:
    """Return the tables in order, each with the side that its name or folder gives."""
    if path.is_file():
        return [(path, None)]
    files = _below(path)
    if not files:
        kind = "the folder has no table" if path.is_dir() else "there is no such file or folder"
        raise DataError(
            f"{path}: {kind}; give a file that ends with {' or '.join(_ENDINGS)}, or a folder of "
            "such files"
        )
    sides = [_side(file.relative_to(path)) for file in files]
    return list(zip(files, sides if all(sides) else [None] * len(files), strict=True))


def _below(path: Path) -> list[Path]:
    """Return the tables in a folder, without the caches of `datasets`."""
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in _ENDINGS and not file.name.startswith((".", "_", "cache-"))
    )
    return [
        file
        for file in files
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]


def _side(file: Path) -> str | None:
    """Return the side in a path such as `train-00000-of-00002.parquet` or `validation/data.arrow`,
    or None."""
    words = [re.split(r"[-_.]", part.lower())[0] for part in reversed(file.parts)]
    return next((word for word in words if word in GIVEN_NAMES), None)


def _rows(path: Path) -> Iterator[TableRow]:
    schema, batches = _batches(path)
    yield from rows(schema, batches, str(path))


def rows(schema: pa.Schema, batches: Iterable[pa.RecordBatch], where: str) -> Iterator[TableRow]:
    """Yield rows, with the names of classes from the schema instead of their numbers."""
    names = _class_names(schema)
    for batch in batches:
        parts = (batch.slice(start, _TEXTS) for start in range(0, batch.num_rows, _TEXTS))
        for row in chain.from_iterable(part.to_pylist() for part in parts):
            yield {
                name: _class_name(value, names[name], where) if name in names else _plain(value)
                for name, value in row.items()
            }


def _batches(path: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    try:
        if path.suffix.lower() == ".parquet":
            table = pq.ParquetFile(path)
            return table.schema_arrow, table.iter_batches(_TEXTS, use_threads=False)
        source = pa.memory_map(str(path))
        try:
            file = pa.ipc.open_file(source)
            return file.schema, (file.get_batch(at) for at in range(file.num_record_batches))
        except pa.ArrowInvalid:  # datasets writes streams
            source.seek(0)
            stream = pa.ipc.open_stream(source)
            return stream.schema, iter(stream)
    except (OSError, pa.ArrowException) as err:
        raise DataError(
            f"{path}: cannot be read as a table: {' '.join(str(err).split())}"
        ) from None


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names of classes for each column that `datasets` stores as numbers."""
    features = (
        json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        .get("info", {})
        .get("features", {})
    )
    inner = {
        name: feature.get("feature", feature) if isinstance(feature, dict) else {}
        for name, feature in features.items()
    }
    return {
        name: feature["names"]
        for name, feature in inner.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }


def _class_name(value: Any, names: list[str], where: str) -> Any:
    if isinstance(value, list):
        return [_class_name(each, names, where) for each in value]
    if value is None or value == -1:  # datasets marks rows without a label with -1
        return None
    if not 0 <= value < len(names):
        raise DataError(
            f"{where}: a label has the number {value}, and the table names {len(names)} classes"
        )
    return names[value]


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold; dates and the like become text."""
    return (
        value
        if isinstance(value, str | int | float | None)
        else json.loads(json.dumps(value, default=str))
    )
