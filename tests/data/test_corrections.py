import json
from pathlib import Path

import pytest

from medray.config.trial import DataConfig
from medray.data import dataset
from medray.data.dataset import Dataset
from medray.errors import DataError
from medray.evaluation.metrics import constant_f1


def load(folder: Path, corrections: str | None = None, name: str = "fixed.csv") -> Dataset:
    path = folder / "rows.jsonl"
    rows = ({"id": f"r{n}", "text": f"text number {n}", "label": "ab"[n % 2]} for n in range(60))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if corrections is not None:
        (folder / name).write_text(corrections)
    raw = {
        "format": {"name": "jsonl", "path": str(path), "id": "id"},
        "corrections": None if corrections is None else str(folder / name),
    }
    return dataset.load(DataConfig.model_validate(raw))


def labels(data: Dataset, log_dir: Path) -> dict[str, tuple[str, ...]]:
    return {
        row.id: row.labels
        for row in [*data.train, *data.validation, *data.open_test(log_dir, "test").examples]
    }


def test_corrected_labels_replace_those_of_the_data_and_no_row_changes_its_side(
    tmp_path: Path,
) -> None:
    before = load(tmp_path)
    after = load(tmp_path, "id,label,note\nr0,b,mine\nr1,b,as it was\nr2,,not looked at\n")
    assert labels(after, tmp_path / "log") == {**labels(before, tmp_path / "log"), "r0": ("b",)}
    assert after.splits == before.splits
    assert after.split_fingerprint == before.split_fingerprint
    assert after.fingerprint != before.fingerprint
    audit = after.audit({}, 512, constant_f1)
    assert audit.num_corrected == 1
    assert "60 rows, 1 with corrected labels" in audit.render()
    assert audit.labels == {"a": 29, "b": 31}
    assert "corrected" not in before.audit({}, 512, constant_f1).render()


def test_corrections_in_json_lines_may_give_several_labels_or_none(tmp_path: Path) -> None:
    lines = [
        {"id": "r0", "label": ["a", "b"]},
        {"id": "r1", "label": []},
        {"id": "r2", "label": "b"},
        {"id": "r3", "label": None},
    ]
    labels_by_id = labels(
        load(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), "fixed.jsonl"),
        tmp_path / "log",
    )
    assert [labels_by_id[f"r{row}"] for row in range(4)] == [("a", "b"), (), ("b",), ("b",)]
    labels_by_id = labels(load(tmp_path, "id,label\nr0,a|b\nr1,(none)\n"), tmp_path / "log")
    assert [labels_by_id["r0"], labels_by_id["r1"]] == [("a", "b"), ()]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,label\nr99,a\n", r"fixed\.csv:2: no row of the data has the id 'r99'"),
        ("id,label\nr1,a\nr1,b\n", r"fixed\.csv:3: a line above corrects the id 'r1' already"),
        ("id,label\nr1,c\n", r"fixed\.csv:2: the data has no label 'c'; allowed: a, b"),
        ("row,label\nr1,c\n", r"fixed\.csv:2: has no id; a correction needs an id and a label"),
    ],
)
def test_a_correction_that_cannot_be_meant_is_refused_by_file_and_line(
    tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "is not a JSON object"),
        ('{"id": "r1", "label": 3}', "the label must be text or a list of texts, found int"),
    ],
)
def test_a_line_that_is_no_correction_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(DataError, match=rf"fixed\.jsonl:1: {message}"):
        load(tmp_path, content, "fixed.jsonl")


def test_a_missing_file_of_corrections_is_refused(tmp_path: Path) -> None:
    raw = {
        "format": {"name": "jsonl", "path": str(tmp_path / "rows.jsonl"), "id": "id"},
        "corrections": "missing.csv",
    }
    load(tmp_path)
    with pytest.raises(DataError, match=r"missing\.csv: no such file; correct the path"):
        dataset.load(DataConfig.model_validate(raw))
