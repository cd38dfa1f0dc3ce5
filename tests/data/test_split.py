import random
from collections import Counter
from typing import Any

import pytest

from medray.config.trial import SplitConfig
from medray.data.split import assign, limit_rows
from medray.errors import DataError
from medray.types import Example


def rows(num: int = 300, **changes: Any) -> list[Example]:
    """Three labels with shares of 60, 30 and 10 %."""
    labels = ("common",) * 6 + ("rarer",) * 3 + ("rare",)
    examples = [
        Example(
            f"r{number}",
            f"text {number}",
            (labels[number % 10],),
            metadata={"patient": str(number // 4)},
        )
        for number in range(num)
    ]
    return examples


def sides(
    examples: list[Example], clusters: list[int] | None = None, **settings: Any
) -> dict[str, str | None]:
    result = assign(examples, SplitConfig(**settings), clusters or list(range(len(examples))))
    return dict(zip((example.id for example in examples), result, strict=True))


@pytest.mark.document(
    "002",
    "80/20 split, stratified by disease",
    where="`data.split`",
    how="60/20/20: validation rows choose, and other rows test",
)
def test_stratified_gives_every_side_its_share_of_every_label() -> None:
    examples = rows()
    result = sides(examples)
    for label, total in (("common", 180), ("rarer", 90), ("rare", 30)):
        counts = Counter(result[example.id] for example in examples if example.labels == (label,))
        assert abs(counts["train"] - 0.6 * total) <= 1
        assert abs(counts["validation"] - 0.2 * total) <= 1
        assert abs(counts["test"] - 0.2 * total) <= 1


@pytest.mark.parametrize(
    "settings", [{}, {"kind": "grouped", "group": "patient"}, {"kind": "kfold", "fold": 2}]
)
@pytest.mark.document("001", "rows are shuffled and split", where="`data.split`")
def test_the_order_of_the_file_changes_no_row(settings: dict[str, Any]) -> None:
    examples = rows()
    permutation = random.Random(1).sample(examples, len(examples))
    assert sides(examples, **settings) == sides(permutation, **settings)
    assert sides(examples, **settings) != sides(examples, seed=1, **settings)


@pytest.mark.parametrize(
    "settings", [{}, {"kind": "grouped", "group": "patient"}, {"kind": "kfold", "fold": 2}]
)
def test_duplicates_never_stand_on_two_sides(settings: dict[str, Any]) -> None:
    examples = rows()
    draw = random.Random(2)
    clusters = list(range(len(examples)))
    for _ in range(15):
        first, *others = draw.sample(range(len(examples)), 3)
        for other in others:
            clusters[other] = clusters[first]
    result = sides(examples, clusters, **settings)
    for cluster in set(clusters):
        assert (
            len(
                {
                    result[example.id]
                    for example, at in zip(examples, clusters, strict=True)
                    if at == cluster
                }
            )
            == 1
        )


def test_grouped_keeps_each_value_of_the_column_on_one_side() -> None:
    examples = rows()
    result = sides(examples, kind="grouped", group="patient")
    for patient in {example.metadata["patient"] for example in examples}:
        assert (
            len(
                {
                    result[example.id]
                    for example in examples
                    if example.metadata["patient"] == patient
                }
            )
            == 1
        )
    counts = Counter(result.values())
    assert abs(counts["train"] - 180) <= 4
    with pytest.raises(DataError, match=r"has no metadata 'patients' .*did you mean 'patient'"):
        sides(examples, kind="grouped", group="patients")


def test_the_folds_test_every_row_once_and_never_train_on_their_test_rows() -> None:
    examples = rows()
    test_counts: Counter[str] = Counter()
    for fold in range(5):
        result = sides(examples, kind="kfold", fold=fold)
        test_counts.update(row for row, side in result.items() if side == "test")
        assert Counter(result.values())["validation"] == pytest.approx(48, abs=2)
    assert set(test_counts.values()) == {1}
    assert len(test_counts) == len(examples)


def test_multi_label_sides_hold_every_label_in_proportion() -> None:
    draw = random.Random(3)
    examples = [
        Example(f"r{n}", f"t{n}", tuple(sorted(draw.sample("abcde", draw.choice((0, 1, 1, 2, 3))))))
        for n in range(400)
    ]
    result = sides(examples)
    for label in "abcde":
        total = sum(label in example.labels for example in examples)
        num_train = sum(
            label in example.labels and result[example.id] == "train" for example in examples
        )
        assert num_train / total == pytest.approx(0.6, abs=0.04)


def rows_on(*values: str | None) -> list[Example]:
    return [
        Example(f"r{n}", f"t{n}", ("a" if n % 2 else "b",), value) for n, value in enumerate(values)
    ]


def test_given_sides_are_kept_under_their_usual_names() -> None:
    examples = rows_on("train", "Training", "dev", "valid", "TEST", "test")
    assert list(sides(examples, kind="given").values()) == [
        "train",
        "train",
        "validation",
        "validation",
        "test",
        "test",
    ]
    with pytest.raises(DataError, match=r"r1: split 'tset' is not known; .*did you mean 'test'"):
        sides(rows_on("train", "tset"), kind="given")
    with pytest.raises(DataError, match="r0: split None is not known"):
        sides(rows_on(None, "test"), kind="given")


def test_given_training_rows_that_duplicate_others_are_set_aside() -> None:
    examples = rows_on(
        "train", "train", "train", "train", "validation", "validation", "test", "test"
    )
    result = sides(examples, [0, 1, 2, 3, 3, 4, 2, 4], kind="given")
    assert list(result.values()) == [
        "train",
        "train",
        None,
        None,
        "validation",
        None,
        "test",
        "test",
    ]


def test_validation_is_taken_from_train_where_the_data_gives_none() -> None:
    examples = rows_on(*["train"] * 40, *["test"] * 10)
    counts = Counter(sides(examples, kind="given", validation=0.25).values())
    assert counts == {"train": 30, "validation": 10, "test": 10}


def test_too_few_rows_are_refused_with_the_counts() -> None:
    with pytest.raises(
        DataError, match=r"too few for the splits \(train 1, validation 0, test 1\)"
    ):
        sides(rows_on("train", "test"), kind="given", validation=0.1)
    with pytest.raises(DataError, match="split: label 'a' has no training row"):
        sides(rows_on("train", "test", "validation", "test", "test"), kind="given")
    with pytest.raises(DataError, match="5 folds need at least as many groups"):
        sides(rows(20), [n % 3 for n in range(20)], kind="kfold")


def test_a_label_without_validation_or_test_rows_causes_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sides([Example(f"r{n}", "t", ("a",)) for n in range(20)] + [Example("x", "t", ("b",))])
    assert [record.message for record in caplog.records] == [
        "validation has no row of 1 label(s): b",
        "test has no row of 1 label(s): b",
    ]


def limit_to(examples: list[Example], limit: int) -> list[Example]:
    return [examples[row] for row in limit_rows(examples, limit, seed=0)]


def test_a_limit_keeps_labels_in_proportion_and_a_smaller_one_is_a_part_of_a_larger() -> None:
    examples = rows(300)
    hundred, fifty = (limit_to(examples, limit) for limit in (100, 50))
    assert Counter(example.labels[0] for example in hundred) == {
        "common": 60,
        "rarer": 30,
        "rare": 10,
    }
    assert {example.id for example in fifty} <= {example.id for example in hundred}
    permutation = random.Random(1).sample(examples, len(examples))
    assert {example.id for example in limit_to(permutation, 50)} == {
        example.id for example in fifty
    }
    assert limit_to(examples, 1000) == examples


def test_the_roundings_of_many_small_labels_do_not_add_up() -> None:
    for labels, each in ((41, 6), (50, 2)):
        examples = [
            Example(f"{label}-{n}", "t", (str(label),))
            for label in range(labels)
            for n in range(each)
        ]
        result = sides(examples)
        counts = Counter(result.values())
        assert counts["train"] / len(examples) == pytest.approx(0.6, abs=0.01)
        assert counts["test"] / len(examples) == pytest.approx(0.2, abs=0.01)
        for label in range(labels):
            assert abs(sum(result[f"{label}-{n}"] == "train" for n in range(each)) - 0.6 * each) < 1


def test_the_only_rows_of_a_label_train_even_where_other_sides_want_most_rows() -> None:
    examples = [Example(f"r{n}", "t", ("a",)) for n in range(20)] + [
        Example("x", "t", ("b",)),
        Example("y", "t", ("c",)),
    ]
    result = sides(examples, validation=0.45, test=0.45)
    assert (result["x"], result["y"]) == ("train", "train")


def test_a_limit_keeps_a_row_of_every_label_or_says_that_it_cannot() -> None:
    examples = [Example(f"r{n}", "t", ("common",)) for n in range(500)] + [
        Example("x", "t", ("rare", "other")),
        Example("y", "t", ("rarer",)),
    ]
    for limit in (3, 20):
        result = limit_to(examples, limit)
        assert len(result) == limit
        assert {label for example in result for label in example.labels} == {
            "common",
            "rare",
            "other",
            "rarer",
        }
    with pytest.raises(
        DataError, match=r"data\.limit: 2 is too small; a train row of every label needs 3"
    ):
        limit_rows(examples, 2, seed=0)
    with pytest.raises(
        DataError, match=r"data\.evaluation_rows: 2 is too small; a test row of every label needs 3"
    ):
        limit_rows(examples, 2, 0, "data.evaluation_rows", "test")
