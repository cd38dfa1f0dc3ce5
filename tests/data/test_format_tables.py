"""Parquet and Arrow tables, and what `datasets` saves."""

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medray import plugins
from medray.data import guess
from medray.data.columns import Hints
from medray.errors import DataError
from medray.types import Example

ROWS = [
    {"id": "a", "text": "tumour of the lung, found by chance", "label": "cancer", "year": 1991},
    {"id": "b", "text": "fever after the infection of a wound", "label": "other", "year": None},
]


def read(path: Path, **settings: Any) -> list[Example]:
    module = plugins.find("data.formats", "tables")
    return list(module.read(module.Options(name="tables", path=str(path), **settings)))


def save_table(folder: Path, kind: str) -> Path:
    """Save the same rows in one of the layouts."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cancer", "other"]),
            "year": datasets.Value("int32"),
        }
    )
    numbers = [row | {"label": ["cancer", "other"].index(str(row["label"]))} for row in ROWS]
    data = datasets.Dataset.from_list(numbers, features=features)
    if kind == "parquet":
        data.to_parquet(folder / "rows.parquet")
        return folder / "rows.parquet"
    if kind == "dataset":
        data.save_to_disk(folder / "saved")
        return folder / "saved"
    datasets.DatasetDict({"train": data.select([0]), "test": data.select([1])}).save_to_disk(
        folder / "saved"
    )
    return folder / "saved"


@pytest.mark.parametrize("kind", ["parquet", "dataset", "sides"])
def test_what_datasets_saved_is_read_with_the_names_of_its_labels(
    tmp_path: Path, kind: str
) -> None:
    rows = sorted(read(save_table(tmp_path, kind), id="id"), key=lambda row: row.id)
    assert [(row.id, row.text, row.labels) for row in rows] == [
        (row["id"], row["text"], (row["label"],)) for row in ROWS
    ]
    assert [dict(row.metadata) for row in rows] == [{"year": "1991"}, {}]
    assert [row.split for row in rows] == (["train", "test"] if kind == "sides" else [None, None])


def test_a_folder_of_parquet_files_says_sides_only_where_every_file_does(tmp_path: Path) -> None:
    for number, name in enumerate(("train-00000-of-00001", "validation-00000-of-00001")):
        pq.write_table(pa.Table.from_pylist([ROWS[number]]), tmp_path / f"{name}.parquet")
    assert [row.split for row in read(tmp_path)] == ["train", "validation"]
    assert [row.id for row in read(tmp_path)] == ["1", "2"]
    pq.write_table(pa.Table.from_pylist([ROWS[0]]), tmp_path / "more.parquet")
    assert {row.split for row in read(tmp_path)} == {None}


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_what_is_written_is_read_back(tmp_path: Path, ending: str) -> None:
    rows = [
        Example("a", "one", ("x",), "train", {"journal": "Lung"}),
        Example("b", "two", ("x", "y"), "test", {}),
        Example("c", "three", (), "test", {}),
    ]
    module = plugins.find("data.formats", "tables")
    options = module.Options(
        name="tables", path=str(tmp_path / f"rows.{ending}"), id="id", split="split"
    )
    module.write(rows, options)
    assert [
        (row.id, row.text, row.labels, row.split, dict(row.metadata))
        for row in module.read(options)
    ] == [(row.id, row.text, row.labels, row.split, dict(row.metadata)) for row in rows]
    with pytest.raises(DataError, match="exists already"):
        module.write(rows, options)


def test_dates_become_text_and_numbers_are_no_labels(tmp_path: Path) -> None:
    row = {"text": "one", "label": "x", "seen": datetime.date(2020, 1, 2), "tags": ["a", "b"]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    assert dict(read(tmp_path / "rows.parquet")[0].metadata) == {
        "seen": "2020-01-02",
        "tags": '["a", "b"]',
    }
    with pytest.raises(DataError, match=r"rows\.parquet:1: 'tags' must be text, found list"):
        read(tmp_path / "rows.parquet", text=("tags",))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "there is no such file or folder"),
        ("empty", "the folder has no table"),
        ("broken.parquet", "cannot be read as a table"),
        ("broken.arrow", "cannot be read as a table"),
    ],
)
def test_a_path_without_a_table_is_an_error(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    for file in ("broken.parquet", "broken.arrow"):
        (tmp_path / file).write_bytes(b"no table at all, but more than a few bytes of text")
    module = plugins.find("data.formats", "tables")
    (problem,) = module.check(module.Options(name="tables", path=str(tmp_path / name)))
    assert f"{name}: {message}" in problem


def test_init_finds_columns_and_given_sides_of_a_saved_data_set(tmp_path: Path) -> None:
    rows = [row | {"id": f"{row['id']}{number}"} for number in range(3) for row in ROWS]
    for side in ("train", "test"):
        pq.write_table(
            pa.Table.from_pylist([row | {"id": f"{side}{row['id']}"} for row in rows]),
            tmp_path / f"{side}.parquet",
        )
    result = guess.sketch(str(tmp_path), Hints())
    assert result.options.model_dump(exclude_unset=True) == {
        "name": "tables",
        "path": str(tmp_path),
        "id": "id",
        "text": ("text",),
        "label": "label",
    }
    assert result.has_split
