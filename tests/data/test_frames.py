"""Tables of Python objects become the same rows."""

from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from medray.data import frames
from medray.errors import DataError

COLUMNS: dict[str, list[Any]] = {"text": ["a", "b", None], "label": ["x", "y", "x"]}


def objects() -> dict[str, Any]:
    return {
        "pandas": pd.DataFrame(COLUMNS),
        "an index of its own": pd.DataFrame(COLUMNS, index=[7, 8, 9]),
        "dataset": Dataset.from_dict(COLUMNS),
        "arrow": pa.table(COLUMNS),
        "mapping": COLUMNS,
        "rows": [{name: values[at] for name, values in COLUMNS.items()} for at in range(3)],
    }


@pytest.mark.parametrize("kind", objects())
def test_every_kind_of_table_gives_the_same_rows(kind: str) -> None:
    data = objects()[kind]
    assert frames.is_table(data) == (kind != "rows")
    assert frames.table_of(data).to_pydict() == COLUMNS


def test_an_object_with_the_stream_of_arrow_is_a_table() -> None:
    """polars and others offer their rows in this way."""

    class Stream:
        columns = ("text", "label")

        def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
            return pa.table(COLUMNS).__arrow_c_stream__(requested_schema)

    assert frames.is_table(Stream())
    assert frames.table_of(Stream()).to_pydict() == COLUMNS


def test_names_of_classes_go_through_parquet(tmp_path: Any) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    data = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    path = tmp_path / "rows.parquet"
    path.write_bytes(frames.to_parquet(data))
    from medray.config.schema import validate
    from medray.data.formats import tables

    options = validate(tables.Options, {"name": "tables", "path": str(path)}, where="test")
    assert [row.labels for row in tables.read(options)] == [("no",), ("yes",)]


def test_the_column_of_the_text_is_known_by_its_name_or_given() -> None:
    data = {"id": ["1", "2"], "abstract": ["one", "two"], "note": ["x", "y"]}
    assert [row.text for row in frames.examples_of(data, None)] == ["one", "two"]
    assert [row.text for row in frames.examples_of(data, "note")] == ["x", "y"]
    with pytest.raises(DataError, match="text 'notes': allowed: abstract, id, note"):
        frames.examples_of(data, "notes")
    with pytest.raises(DataError, match="not clear; the columns are a, b"):
        frames.examples_of({"a": [1, 2], "b": [3, 4]}, None)


@pytest.mark.parametrize("data", [7, "text", [1, 2], {"a": [1], "b": [1, 2]}, {"a": []}, []])
def test_what_is_no_table_is_named(data: Any) -> None:
    with pytest.raises(DataError, match=r"the data: (is a|cannot be read|has no rows)"):
        frames.table_of(data)
