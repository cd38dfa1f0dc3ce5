"""Encoded rows are made in pieces, resumed after an interrupt, and mapped by trials."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support import tiny

from medray.config.study import StudyConfig
from medray.data import dataset, examples, minhash, reading
from medray.data.examples import Examples
from medray.data.meter import Meter
from medray.data.prepared import Prepared
from medray.tasks.base import protocol as tasks
from medray.training import material
from medray.training.material import Material, gather, open_material
from medray.types import Example, Mention


def make_material(study: StudyConfig, place: Path) -> Material:
    config, data = study.trial(study.base_models[0]), dataset.load(study.data)
    return gather(config, data, tasks.fit(config.task, data.label_sets(), data.train), place)


def test_rows_on_disk_encoded_in_pieces_are_those_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny.study(tmp_path)
    whole = make_material(study, tmp_path / "whole")
    monkeypatch.setenv("MEDRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reading, "LARGE_BYTES", 0)
    monkeypatch.setattr(examples, "BATCH", 4)
    monkeypatch.setattr(minhash, "sign_table", sign_here)
    monkeypatch.setattr(material, "ROWS_PER_PIECE", 5)
    monkeypatch.setattr(material, "ROWS_PER_BATCH", 3)
    parts = make_material(study, tmp_path / "parts")
    assert parts.prepared.table.equals(whole.prepared.table)
    assert parts.prepared.table["tokens"].num_chunks > 3
    assert (parts.prepared.fingerprint, parts.prepared.num_truncated) == (
        whole.prepared.fingerprint,
        whole.prepared.num_truncated,
    )
    assert parts.audit == whole.audit
    assert isinstance(parts.validation, Examples)  # in a file beside the description
    assert list(open_material(parts.path).validation) == list(whole.validation)
    one, other = parts.prepared.split("train"), whole.prepared.split("train")
    assert [one.tokens(row).tolist() for row in range(len(one))] == [
        other.tokens(row).tolist() for row in range(len(other))
    ]
    assert [one.target(row) for row in range(len(one))] == one.targets() == other.targets()
    stage = dataset.Dataset.stage
    stages: list[str] = []
    monkeypatch.setattr(
        dataset.Dataset,
        "stage",
        lambda self, what, total: [stages.append(what), stage(self, what, total)][1],
    )
    assert make_material(study, tmp_path / "again").audit == whole.audit
    assert stages == ["encoding", "audit"]  # tokens were counted before


def sign_here(path: Path, num_rows: int, width: int, progress: Meter) -> minhash.Signatures:
    return minhash.Signatures([minhash.Signer().sign(Examples.open(path).texts(), width)])


def test_what_an_interrupted_study_encoded_is_not_encoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(material, "ROWS_PER_PIECE", 5)
    study = tiny.study(tmp_path)
    whole = make_material(study, tmp_path / "whole")
    real_encode = material.encode
    calls: list[Any] = []

    def encode(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real_encode(*arguments)

    monkeypatch.setattr(material, "encode", encode)
    with pytest.raises(KeyboardInterrupt):
        make_material(study, tmp_path / "prepared")
    num_pieces = sum(
        -(-len(whole.prepared.split(split)) // 5) for split in ("train", "validation", "test")
    )
    again = make_material(study, tmp_path / "prepared")
    assert len(calls) == 3 + num_pieces - 2
    assert again.prepared.table.equals(whole.prepared.table)
    assert not list((tmp_path / "prepared").glob("*.pieces"))


def test_the_rows_of_a_split_are_read_from_the_mapped_file_without_a_copy(tmp_path: Path) -> None:
    prepared = make_material(tiny.study(tmp_path), tmp_path / "prepared").prepared
    before = pa.total_allocated_bytes()
    table_file = Prepared.open(next((tmp_path / "prepared").glob("*.arrow")))
    rows = table_file.split("validation")
    num_bytes = pa.total_allocated_bytes() - before
    assert rows.tokens(0).tolist() == prepared.split("validation").tokens(0).tolist()
    assert num_bytes < table_file.table["tokens"].nbytes


def test_other_rows_of_a_side_are_another_table(tmp_path: Path) -> None:
    """Where the split is given, its seed decides only which rows a limit keeps."""
    place, fingerprints = tmp_path / "prepared", []
    for seed, limit in ((0, 10), (1, 10), (0, 10), (0, 11)):
        study = tiny.study(tmp_path, f"data.limit={limit}", f"data.split={{seed: {seed}}}")
        data = dataset.load(study.data)
        ids = [example.id for example in data.train]
        material_of_study = make_material(study, place)
        assert list(material_of_study.prepared.split("train").ids) == ids
        fingerprints.append(material_of_study.prepared.fingerprint)
    assert len(set(fingerprints)) == 3


def test_validation_rows_that_were_corrected_are_not_those_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(material, "ROWS_PER_PIECE", 1)
    one = [
        Example("a", "fever of two days", mentions=(Mention(0, 5, "fever", "Sign"),)),
        Example("b", "no fever"),
    ]
    other = [
        Example("a", "fever of two days", mentions=(Mention(0, 17, "fever of two days", "Sign"),)),
        Example("b", "no fever"),
    ]
    for rows in (one, other):
        record = material.store_validation(rows, tmp_path)
        assert list(material.load_validation(record, tmp_path)) == rows
