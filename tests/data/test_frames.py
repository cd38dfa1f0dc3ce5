"""Tables of Python objects become the same rows."""

import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from medray.config.schema import validate
from medray.data import frames
from medray.data.formats import tables
from medray.errors import DataError
from medray.types import Example

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


def test_categories_of_pandas_are_texts(tmp_path: Path) -> None:
    data = pd.DataFrame(COLUMNS).astype({"label": "category"})
    assert frames.table_of(data).to_pydict() == COLUMNS
    assert labels_in(data.head(2), tmp_path) == [("x",), ("y",)]


@pytest.mark.parametrize("kind", ["text", "categories", "an enumeration", "lists"])
def test_rows_of_polars_go_through_parquet(kind: str, tmp_path: Path) -> None:
    pl = pytest.importorskip("polars")
    data = pl.DataFrame(COLUMNS).head(2)
    label = pl.col("label")
    columns = {
        "text": label,
        "categories": label.cast(pl.Categorical),
        "an enumeration": label.cast(pl.Enum(["x", "y"])),
        "lists": pl.concat_list(label.cast(pl.Categorical)),
    }
    data = data.with_columns(columns[kind].alias("label"))
    assert frames.is_table(data)
    assert labels_in(data, tmp_path) == [("x",), ("y",)]


def test_a_null_of_polars_is_an_empty_text_in_rows_to_predict() -> None:
    pl = pytest.importorskip("polars")
    rows = frames.examples_of(pl.DataFrame(COLUMNS), "text")
    assert [row.text for row in rows] == ["a", "b", ""]


def test_a_lazy_frame_and_a_series_are_named() -> None:
    pl = pytest.importorskip("polars")
    data = pl.DataFrame(COLUMNS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the columns of a lazy frame cost a plan
        assert frames.is_table(data.lazy())
        with pytest.raises(DataError) as error:
            frames.table_of(data.lazy())
    assert str(error.value) == (
        "the data: is a LazyFrame, whose rows are not read yet; give .collect()"
    )
    with pytest.raises(DataError, match="the data: is a Series; give a DataFrame"):
        frames.table_of(data["text"])


def test_names_of_classes_go_through_parquet(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    data = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    assert labels_in(data, tmp_path) == [("no",), ("yes",)]


def test_numbers_and_truth_values_are_labels_and_a_missing_one_is_named(tmp_path: Path) -> None:
    table = pd.DataFrame({"text": ["a", "b"], "label": [0, 1]})
    assert labels_in(table, tmp_path) == [("0",), ("1",)]
    assert labels_in(table.astype({"label": bool}), tmp_path) == [("false",), ("true",)]
    message = "label 'label': 1 of 2 rows have none, the first at position 1; fill them in, or"
    with pytest.raises(DataError, match=message):
        frames.to_parquet({"text": ["a", "b"], "label": [0, None]}, ["text"], "label")


def test_columns_without_names_are_named_by_their_numbers(tmp_path: Path) -> None:
    rows = [["one", "yes"], ["two", "no"]]
    content = frames.to_parquet(pd.DataFrame(rows), ["0"], "1")
    assert pq.read_table(pa.BufferReader(content)).column_names == ["0", "1"]
    for data in (pd.DataFrame(rows), [{0: "one", 1: "yes"}, {0: "two", 1: "no"}]):
        assert [row.text for row in frames.examples_of(data, 0)] == ["one", "two"]
        with pytest.raises(DataError, match="text '2': allowed: 0, 1"):
            frames.examples_of(data, 2)


def test_a_column_that_is_named_must_be_there() -> None:
    for text, label, id, message in (
        (["note"], "label", None, "text 'note': allowed: label, text"),
        (["text"], "lable", None, "label 'lable': .*did you mean 'label'"),
        (["text"], "label", "key", "id 'key': allowed"),
    ):
        with pytest.raises(DataError, match=message):
            frames.to_parquet({"text": ["a"], "label": ["x"]}, text, label, id)


def labels_in(data: Any, folder: Path) -> list[tuple[str, ...]]:
    """Return the labels of the rows after they were stored as a file."""
    path = folder / "rows.parquet"
    path.write_bytes(frames.to_parquet(data, ["text"], "label"))
    options = validate(tables.Options, {"name": "tables", "path": str(path)}, where="test")
    return [row.labels for row in tables.read(options)]


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
        frames.to_parquet(data, ["a"], "b")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"text": "a", "label": ["x"]}, "column 'text' is a text instead of a list"),
        ({"text": ["a", "b\ud800"], "label": ["x", "y"]}, "half of a surrogate pair"),
        ({"text": ["a", None], "label": ["x", "y"]}, "text 'text': 1 of 2 rows have none"),
        ({"text": ["a", "b"], "label": ["x", " "]}, "label 'label': 1 of 2 rows have none"),
    ],
)
def test_what_is_no_text_or_label_in_a_table_is_named(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        frames.to_parquet(data, ["text"], "label")


def test_rows_to_predict_may_be_mappings_arrow_arrays_or_none() -> None:
    rows = [{"text": "one", "more": "1"}, {"text": "two", "more": "2"}]
    assert [row.text for row in frames.examples_of(rows)] == ["one", "two"]
    assert [row.text for row in frames.examples_of(rows, ["text", "more"])] == ["one 1", "two 2"]
    assert [row.text for row in frames.examples_of(pa.array(["one", "two"]))] == ["one", "two"]
    assert frames.examples_of(pd.DataFrame({"text": []})) == []
    for splits in (DatasetDict({"train": Dataset.from_dict(COLUMNS)}), {}):
        with pytest.raises(DataError, match=r"is a DatasetDict of several splits; give one|has no"):
            frames.to_parquet(splits, ["text"], "label")
    with pytest.raises(DataError, match="IterableDataset, whose rows are not read yet"):
        frames.examples_of(Dataset.from_dict(COLUMNS).to_iterable_dataset())
    with pytest.raises(DataError, match="predict: row 0 is of type NoneType"):
        frames.examples_of([Example("a", None)])  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"text: \[\] names no column"):
        frames.examples_of(rows, [])
