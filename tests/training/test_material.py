"""Encoded rows are made in pieces, resumed after an interrupt, and mapped by trials."""

from collections.abc import Callable
from contextlib import AbstractContextManager
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
from medray.study import materials
from medray.tasks.base import protocol as tasks
from medray.training import material
from medray.training.material import Material, gather, open_material
from medray.types import SPLITS, Example, Mention


def make_material(study: StudyConfig, place: Path) -> Material:
    config = study.trial(study.base_models[0])
    data = dataset.load(study.data, tasks.task_options(study.task).bring)
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


@pytest.mark.parametrize(
    ("build", "settings", "num_counted"),
    [
        (tiny.study, ("task.max_length=12",), 0),
        (tiny.study, ("task.long_texts=windows", "task.max_length=9", "task.window_overlap=2"), 0),
        (tiny.study, ("data.limit=10", "data.evaluation_rows=3"), 60 - 16),
        (tiny.mention_study, ("{name: tagging, max_length: 9, window_overlap: 2}",), 0),
        (tiny.choice_study, (), 60),  # a prompt has other tokens than its text
    ],
)
def test_the_audit_counts_only_texts_that_were_not_encoded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    build: Callable[..., StudyConfig],
    settings: tuple[str, ...],
    num_counted: int,
) -> None:
    counts = record_counts(monkeypatch)
    study = build(tmp_path, *settings)
    own = make_material(study, tmp_path / "prepared")
    assert sum(counts) == num_counted
    (audit,) = materials.audit(study)
    assert own.audit["tokens"] == audit.as_dict()["tokens"]


def test_the_audit_of_conversations_counts_those_that_were_cut_or_have_no_answer_to_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = record_counts(monkeypatch)
    study = tiny.instruct_study(tmp_path, "task.max_length=48")
    own = make_material(study, tmp_path / "prepared")
    is_counted = [own.prepared.split(side).text_lengths() >= 0 for side in SPLITS]
    assert is_counted[0].any()
    assert not is_counted[0].all()
    assert not is_counted[2].any()
    assert sum(counts) == sum((~own_rows).sum() for own_rows in is_counted)
    (audit,) = materials.audit(study)
    assert own.audit["tokens"] == audit.as_dict()["tokens"]


def test_tables_and_pieces_without_lengths_are_read_and_their_texts_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier medray wrote them, and their fingerprints are those of today."""
    study = tiny.study(tmp_path)
    own = make_material(study, tmp_path / "prepared")
    (table,) = (tmp_path / "prepared").glob("*.arrow")
    table_then = own.prepared.table.drop_columns(["text_length", "offsets"])
    older = Prepared(table_then, own.prepared.fingerprint)
    older.save(tmp_path / "older.arrow")
    (tmp_path / "older.arrow").replace(table)
    counts = record_counts(monkeypatch)
    assert make_material(study, tmp_path / "prepared").audit == own.audit
    assert sum(counts) == 60
    Prepared.join([table], own.prepared.fingerprint, tmp_path / "joined.arrow")
    whole = Prepared.open(tmp_path / "joined.arrow")
    assert whole.split("train").text_lengths().tolist() == [-1] * len(whole.split("train"))


def record_counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of the numbers of rows whose tokens will be counted."""
    counts: list[int] = []
    stage = dataset.Dataset.stage

    def record(self: dataset.Dataset, what: str, total: int) -> AbstractContextManager[Meter]:
        if what == "counting tokens":
            counts.append(total)
        return stage(self, what, total)

    monkeypatch.setattr(dataset.Dataset, "stage", record)
    return counts


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
