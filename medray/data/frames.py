"""Rows of Python objects as an Arrow table: DataFrames of pandas and polars, `datasets.Dataset`,
Arrow tables, a mapping of columns, a list of rows."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medray.data.columns import prediction_columns
from medray.errors import DataError, suggest
from medray.types import Example

TextColumns = str | int | Sequence[str | int]  # one column, or several that are joined
_KINDS = "a DataFrame, a Dataset, a mapping of columns, or a list of rows as mappings"
_INDEX = "__index_level_"  # the column in which pandas passes on an index with values of its own


def is_table(data: Any) -> bool:
    """Return whether an object holds rows with columns, unlike a list of texts or a Series."""
    # Asked of the class, since a lazy frame resolves its columns where they are read.
    has_columns = hasattr(type(data), "columns") or hasattr(data, "column_names")
    return has_columns or isinstance(data, Mapping)


def table_of(data: Any) -> pa.Table:
    """Return the rows of an object; an error names what it is."""
    kind = type(data).__name__
    if hasattr(data, "collect"):
        raise DataError(f"the data: is a {kind}, whose rows are not read yet; give .collect()")
    if isinstance(data, Mapping) and hasattr(data, "column_names"):
        raise DataError(f"the data: is a {kind} of several splits; give one, as in data['train']")
    if hasattr(data, "with_format") and not hasattr(data, "__len__"):
        raise DataError(f"the data: is a {kind}, whose rows are not read yet; give a Dataset")
    try:
        table = _table(data)
    except UnicodeEncodeError:
        raise DataError(
            "the data: a text holds half of a surrogate pair, which is not a character; replace it"
        ) from None
    except (pa.ArrowException, TypeError, ValueError) as err:
        reason = " ".join("; ".join(map(str, err.args)).split())
        raise DataError(
            f"the data: cannot be read as a table ({reason:.200}); give {_KINDS}"
        ) from None
    if table is None:
        raise DataError(f"the data: is a {kind}; give {_KINDS}")
    return table.drop_columns([name for name in table.column_names if name.startswith(_INDEX)])


def _table(data: Any) -> pa.Table | None:
    if hasattr(data, "with_format") and hasattr(data, "column_names"):
        return data.with_format("arrow")[:]  # a Dataset, with the names of its classes
    if hasattr(data, "__arrow_c_stream__") and is_table(data):  # a Series has a stream, too
        return _in_plain_types(pa.table(data))
    if isinstance(data, Mapping):
        if texts := [name for name, values in data.items() if isinstance(values, str)]:
            raise TypeError(f"column {texts[0]!r} is a text instead of a list")
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
    if not table.num_rows:
        raise DataError("the data: has no rows; give some")
    columns = [*(("text", name) for name in text), ("label", label), ("id", id)]
    for role, name in columns:
        if name is not None:
            _check_column(table, role, name)
    _check_values(table, "label", label)
    for name in text:
        _check_values(table, "text", name)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def examples_of(inputs: Any, text: TextColumns | None = None) -> list[Example]:
    """Return texts, or the rows of a table, as examples. Their ids are their positions."""
    if isinstance(inputs, str):
        raise DataError("predict: got one text; give a list of texts, as in predict([text])")
    if is_table(inputs):
        return _examples_of_table(table_of(inputs), text)
    if not isinstance(inputs, Iterable) or getattr(inputs, "ndim", 1) == 0:
        raise DataError(
            f"predict: the inputs are of type {type(inputs).__name__}; give a list of texts"
        )
    # An Arrow array has values of its own types.
    rows = inputs.to_pylist() if hasattr(inputs, "to_pylist") else list(inputs)
    if rows and all(isinstance(row, Mapping) for row in rows):
        return _examples_of_table(table_of(rows), text)
    if text is not None:
        raise DataError(f"text {text!r}: the inputs have no columns; drop it, or give a table")
    return [_example(row, number) for number, row in enumerate(rows)]


def _example(row: Any, number: int) -> Example:
    where = f"predict: row {number}"
    if isinstance(row, Example):
        check_text(row.text, where)
        return row
    return Example(str(number), check_text(row, where))


def _examples_of_table(table: pa.Table, text: TextColumns | None) -> list[Example]:
    """Return the rows of a table as examples. Where `text` is None, the columns of the text are
    known by their names."""
    if text is None:
        names = list(prediction_columns(_columns(table)).text) if table.num_rows else []
    else:
        names = column_names(text)
        for name in names:
            _check_column(table, "text", name)
    if not table.num_rows:
        return []
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


def column_names(columns: TextColumns) -> list[str]:
    """Return the names of one column or of several, as they are in a stored table."""
    several = [columns] if isinstance(columns, str | int) else columns
    if not isinstance(several, Iterable) or not (names := [str(one) for one in several]):
        raise DataError(f"text: {columns!r:.60} names no column; give the name of one, or a list")
    return names


def _check_values(table: pa.Table, role: str, name: str) -> None:
    """Raise where rows have no value. A blank label is none; a blank text is set aside later."""
    column = table.column(name)
    is_missing = column.is_null()
    if role == "label" and (
        pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    ):
        is_blank = pc.equal(pc.utf8_trim_whitespace(column), "")
        is_missing = pc.or_(is_missing, pc.fill_null(is_blank, False))
    if num_missing := pc.sum(is_missing).as_py():
        raise DataError(
            f"{role} {name!r}: {num_missing} of {table.num_rows} rows have none, the first at "
            f"position {pc.index(is_missing, True).as_py()}; fill them in, or leave these rows out"
        )


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
