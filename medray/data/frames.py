"""Rows of Python objects as an Arrow table: DataFrames of pandas and polars, `datasets.Dataset`,
Arrow tables, a mapping of columns, a list of rows."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medray.data.columns import prediction_columns
from medray.errors import DataError, suggest
from medray.types import Example

_KINDS = "a DataFrame, a Dataset, a mapping of columns, or a list of rows as mappings"
_INDEX = "__index_level_"  # the column in which pandas passes on an index with values of its own


def is_table(data: Any) -> bool:
    """Return whether an object holds rows with columns, unlike a list of texts or a Series."""
    # Asked of the class, since a lazy frame resolves its columns where they are read.
    has_columns = hasattr(type(data), "columns") or hasattr(data, "column_names")
    return has_columns or isinstance(data, Mapping)


def table_of(data: Any) -> pa.Table:
    """Return the rows of an object; an error names what it is."""
    if hasattr(data, "collect"):
        raise DataError(
            f"the data: is a {type(data).__name__}, whose rows are not read yet; give .collect()"
        )
    try:
        table = _table(data)
    except (pa.ArrowException, TypeError, ValueError) as err:
        reason = " ".join(str(err).split())
        raise DataError(
            f"the data: cannot be read as a table ({reason:.200}); give {_KINDS}"
        ) from None
    if table is None:
        raise DataError(f"the data: is a {type(data).__name__}; give {_KINDS}")
    if not table.num_rows:
        raise DataError("the data: has no rows; give some")
    return table.drop_columns([name for name in table.column_names if name.startswith(_INDEX)])


def _table(data: Any) -> pa.Table | None:
    if hasattr(data, "with_format") and hasattr(data, "column_names"):
        return data.with_format("arrow")[:]  # a Dataset, with the names of its classes
    if hasattr(data, "__arrow_c_stream__") and is_table(data):  # a Series has a stream, too
        return _in_plain_types(pa.table(data))
    if isinstance(data, Mapping):
        return pa.table({str(name): list(values) for name, values in data.items()})
    if isinstance(data, Sequence) and all(isinstance(row, Mapping) for row in data):
        return pa.Table.from_pylist(
            [{str(name): value for name, value in row.items()} for row in data]
        )
    return None


def _in_plain_types(table: pa.Table) -> pa.Table:
    """Return the table without categories and views, which polars has: Parquet cannot store
    categories of views."""
    for number, field in enumerate(table.schema):
        if re.search("dictionary|_view", str(field.type)):
            values = pa.array(table.column(number).to_pylist())
            table = table.set_column(number, field.name, values)
    return table


def to_parquet(data: Any, text: Sequence[str], label: str, id: str | None = None) -> bytes:
    """Return rows as a file. The columns that are named must exist."""
    table = table_of(data)
    columns = [*(("text", name) for name in text), ("label", label), ("id", id)]
    for role, name in columns:
        if name is not None:
            _check_column(table, role, name)
    if missing := table.column(label).null_count:
        raise DataError(
            f"label {label!r}: {missing} of {table.num_rows} rows have none; fill them in, or "
            "leave these rows out"
        )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def examples_of(data: Any, text: str | int | None) -> list[Example]:
    """Return the rows of a table to predict, with their positions as ids. The column of the text is
    found by its name where `text` is None."""
    table = table_of(data)
    if text is None:
        names = list(prediction_columns(_columns(table)).text)
    else:
        names = [str(text)]
        _check_column(table, "text", names[0])
    if not names:
        raise DataError(
            f"the data: which column is the text is not clear; the columns are "
            f"{', '.join(table.column_names)}: name one, as in text={table.column_names[0]!r}"
        )
    columns = [table.column(name).to_pylist() for name in names]
    return [
        Example(str(number), " ".join(str(value) for value in values if value is not None))
        for number, values in enumerate(zip(*columns, strict=True))
    ]


def _check_column(table: pa.Table, role: str, name: str) -> None:
    if name not in table.column_names:
        raise DataError(f"{role} {name!r}: {suggest(name, table.column_names)}")


def check_text(value: Any, where: str) -> str:
    """Return a text that a tokenizer can read, or raise with its place."""
    if not isinstance(value, str):
        raise DataError(f"{where} is of type {type(value).__name__}; give a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{where} holds half of a surrogate pair, which is not a character; replace it"
        ) from None
    return str(value)  # numpy has a subclass


def _columns(table: pa.Table) -> dict[str, list[Any]]:
    return {name: table.column(name).to_pylist() for name in table.column_names}
