"""The format `hub`, with folders and files instead of the Hub: the call is the same."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medray import plugins
from medray.config.trial import DataConfig
from medray.data import dataset, examples, minhash, reading
from medray.data.formats.base import protocol
from medray.errors import ConfigError, DataError
from medray.types import Example

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("MEDRAY_CACHE", str(tmp_path / "cache"))


def options(path: Path | str, **settings: Any) -> Any:
    return DataConfig.model_validate(
        {"format": {"name": "hub", "path": str(path), **settings}}
    ).format


def folder(place: Path) -> Path:
    """Write a folder of Parquet files with numbered labels, as the Hub has it."""
    features = datasets.Features(
        {
            "pmid": datasets.Value("int64"),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cancer", "other"]),
        }
    )
    place.mkdir()
    for side, numbers in (("train", range(30)), ("test", range(30, 40))):
        rows = [{"pmid": n, "text": f"text number {n}", "label": n % 2} for n in numbers]
        datasets.Dataset.from_list(rows, features=features).to_parquet(
            place / f"{side}-00000-of-00001.parquet"
        )
    return place


def test_splits_are_sides_and_numbered_labels_get_their_names(tmp_path: Path) -> None:
    rows = list(protocol.read(options(folder(tmp_path / "data"), id="pmid")))
    assert len(rows) == 40
    assert (rows[0].id, rows[0].text, rows[0].labels, rows[0].split) == (
        "0",
        "text number 0",
        ("cancer",),
        "train",
    )
    assert (rows[31].id, rows[31].labels, rows[31].split) == ("31", ("other",), "test")
    assert [
        row.split for row in protocol.read(options(tmp_path / "data", id="pmid", splits=["test"]))
    ] == ["test"] * 10
    assert protocol.check(options(tmp_path / "data", id="pmid")) == []


def test_it_is_split_as_the_same_rows_of_a_table_are_and_once_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder(tmp_path / "data")
    split = {"kind": "given"}
    table = DataConfig.model_validate(
        {"format": {"name": "tables", "path": str(place), "id": "pmid"}, "split": split}
    )
    expectation = dataset.load(table)
    config = DataConfig.model_validate({"format": options(place, id="pmid"), "split": split})
    assert dataset.load(config).split_fingerprint == expectation.split_fingerprint
    monkeypatch.setattr(reading, "LARGE_BYTES", 0)
    monkeypatch.setattr(
        minhash,
        "sign_table",
        lambda path, *rest: minhash.Signatures(
            [minhash.Signer().sign(examples.Examples.open(path).texts(), 4)]
        ),
    )
    assert dataset.load(config).fingerprint == expectation.fingerprint
    monkeypatch.setattr(reading, "read", lambda options: pytest.fail("the rows are in the cache"))
    assert dataset.load(config).fingerprint == expectation.fingerprint


def test_what_cannot_be_loaded_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"data\.format\.splits names 'tost'; .*test"):
        list(protocol.read(options(folder(tmp_path / "data"), splits=["tost"])))
    (problem,) = protocol.check(options(tmp_path / "data", label="class"))
    assert "data.format.label" in problem or "label" in problem
    requests: list[Any] = []

    def load(*arguments: Any, **keywords: Any) -> Any:
        requests.append((arguments, keywords))
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", load)
    hub = options("owner/name", config="pqa_labeled", revision="abc")
    assert protocol.check(hub) == ["owner/name: datasets cannot load it: no network"]
    assert requests[0] == (("owner/name", "pqa_labeled"), {"revision": "abc"})
    assert hub.is_remote
    assert not options(tmp_path).is_remote
    module = plugins.find("data.formats", "hub")
    with pytest.raises(ConfigError, match="cannot write to the Hub"):
        module.write([Example("a", "b")], hub)


def test_a_file_of_parquet_is_read_too(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"text": ["one", "two"], "label": ["a", "b"]}), tmp_path / "rows.parquet"
    )
    hub_options = options(tmp_path, splits=["train"])
    assert [(row.id, row.text, row.labels) for row in protocol.read(hub_options)] == [
        ("1", "one", ("a",)),
        ("2", "two", ("b",)),
    ]
