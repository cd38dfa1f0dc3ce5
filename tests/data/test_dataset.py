import json
import logging
from pathlib import Path

import pytest

from medray.config.trial import DataConfig
from medray.data import dataset
from medray.data.audit import audit
from medray.data.dataset import Dataset
from medray.data.duplicates import find
from medray.errors import DataError
from medray.evaluation.metrics import constant_f1
from medray.types import Example


def write(folder: Path, rows: list[dict[str, object]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path: Path, **settings: object) -> Dataset:
    return dataset.load(
        DataConfig.model_validate(
            {"format": {"name": "jsonl", "path": str(path), "id": "id"}, **settings}
        )
    )


def rows(num: int = 60) -> list[dict[str, object]]:
    return [{"id": f"r{n}", "text": f"text number {n}", "label": "ab"[n % 2]} for n in range(num)]


def test_every_row_is_on_one_side_and_the_fingerprints_know_text_label_and_side(
    tmp_path: Path,
) -> None:
    data = load(write(tmp_path, rows()))
    ids = [
        {e.id for e in members} for members in (data.train, data.validation, data.unlabelled_test())
    ]
    assert sum(map(len, ids)) == len(set.union(*ids)) == 60
    again = load(write(tmp_path, rows()[::-1]))
    assert (again.fingerprint, again.split_fingerprint) == (
        data.fingerprint,
        data.split_fingerprint,
    )
    other_rows = rows()
    other_rows[3]["label"] = "a"
    other = load(write(tmp_path, other_rows))
    assert other.fingerprint != data.fingerprint
    assert (
        load(write(tmp_path, rows()), split={"seed": 1}).split_fingerprint != data.split_fingerprint
    )


def test_test_labels_have_one_door_that_keeps_a_log_and_warns_the_second_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = load(write(tmp_path, rows()))
    assert {example.labels for example in data.unlabelled_test()} == {()}
    test_set = data.open_test(tmp_path / "log", "first look")
    assert test_set.num_openings == 1
    assert {example.labels for example in test_set.examples} == {("a",), ("b",)}
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert load(write(tmp_path, rows())).open_test(tmp_path / "log", "second").num_openings == 2
    assert "opened 1 time(s) before, by first look" in caplog.text
    (log,) = (tmp_path / "log").iterdir()
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(entry["caller"], entry["rows"], entry["split"]) for entry in entries] == [
        (caller, 12, data.split_fingerprint) for caller in ("first look", "second")
    ]


def test_the_label_sets_a_task_learns_from_name_no_row(tmp_path: Path) -> None:
    sets = load(write(tmp_path, rows())).label_sets()
    assert sorted(example.labels for example in sets) == [("a",), ("b",)]
    assert {(example.id, example.text) for example in sets} == {("", "")}


def test_a_limit_counts_training_rows_only(tmp_path: Path) -> None:
    path = write(tmp_path, rows())
    whole, part = load(path), load(path, limit=10)
    assert len(part.train) == 10
    assert {e.id for e in part.train} <= {e.id for e in whole.train}
    assert part.validation == whole.validation
    assert part.unlabelled_test() == whole.unlabelled_test()


def test_an_id_used_twice_is_an_error_with_both_places(tmp_path: Path) -> None:
    twice = [*rows(), {"id": "r3", "text": "again", "label": "a"}]
    with pytest.raises(
        DataError, match=r"rows\.jsonl:61: id 'r3' is used twice, first at .*rows\.jsonl:4"
    ):
        load(write(tmp_path, twice))


def test_empty_texts_are_set_aside_and_counted(tmp_path: Path) -> None:
    data = load(write(tmp_path, [*rows(), {"id": "blank", "text": "  ", "label": "a"}]))
    assert data.set_aside == {"blank": "empty text"}
    assert data.audit({}, 512, constant_f1).num_empty == 1
    with pytest.raises(DataError, match="no row has a text"):
        load(write(tmp_path, [{"id": "blank", "text": "", "label": "a"}]))


def test_the_audit_counts_duplicates_conflicts_and_the_ceiling_they_set() -> None:
    examples = [
        Example("1", "Same text here", ("a",), "train"),
        Example("2", "same  TEXT here", ("b",), "test"),
        Example("3", "Same text here", ("a",), "train"),
        Example("4", "another", ("b",)),
        Example("5", "another", ("b",)),
        *(Example(str(n), f"own text {n}", ("a",)) for n in range(6, 11)),
    ]
    figures = audit(
        examples,
        find([e.text for e in examples], 0.8),
        {},
        lengths={"m": [3, 3, 3, 1, 1, *[600] * 5]},
        max_length=512,
        constant_f1=constant_f1,
    )
    assert (figures.exact_groups, figures.exact_rows, figures.given_across) == (2, 5, 1)
    assert (figures.conflicting_texts, figures.conflicting_rows) == (1, 3)
    assert figures.accuracy_ceiling == pytest.approx(0.9)
    assert (figures.majority_label, figures.majority_accuracy) == ("a", 0.7)
    assert figures.majority_f1_macro == pytest.approx((2 * 0.7 / 1.7 + 0) / 2)
    assert (figures.tokens["m"].num_over, figures.tokens["m"].longest) == (5, 600)
    text = figures.render()
    for part in (
        "1 texts have different labels, 3 rows (30.0%)",
        "90.0%",
        "5 texts (50.0%) are longer than 512",
        "are on two sides",
    ):
        assert part in text
    json.dumps(figures.as_dict())


@pytest.mark.real
def test_the_real_abstracts_hold_eight_percent_of_conflicting_duplicates(real_data: Path) -> None:
    csv = {
        "name": "delimited",
        "path": str(real_data / "abstracts" / "medical_abstracts.csv"),
        "id": "id",
        "text": ["abstract"],
        "label": "condition",
    }
    figures = dataset.load(DataConfig.model_validate({"format": csv})).audit({}, 512, constant_f1)
    assert figures.num_rows == 2305
    assert figures.conflicting_rows / figures.num_rows == pytest.approx(0.08, abs=0.005)
    assert figures.accuracy_ceiling == pytest.approx(0.959, abs=0.003)


def test_no_public_attribute_holds_a_test_row_with_its_label(tmp_path: Path) -> None:
    data = load(write(tmp_path, rows()))
    test_ids = {example.id for example in data.unlabelled_test()}
    public = [
        getattr(data, name)
        for name in dir(data)
        if not name.startswith("_") and not callable(getattr(data, name))
    ]
    examples = [
        item
        for value in public
        if isinstance(value, list | tuple)
        for item in value
        if isinstance(item, Example)
    ]
    examples += [*data.label_sets(), *data.unlabelled_test()]
    assert len(examples) > 48
    assert not [example for example in examples if example.id in test_ids and example.labels]


def test_half_a_line_in_the_log_of_openings_counts_as_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = load(write(tmp_path, rows()))
    data.open_test(tmp_path / "log", "first")
    (path,) = (tmp_path / "log").iterdir()
    path.write_text(path.read_text() + '{"time": "20\n')
    assert data.open_test(tmp_path / "log", "third").num_openings == 3
    assert "an unreadable entry, first" in caplog.text
