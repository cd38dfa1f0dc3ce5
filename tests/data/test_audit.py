import pytest

from medray.data.audit import Audit, alike_labels, audit
from medray.data.duplicates import find
from medray.evaluation.metrics import constant_f1
from medray.types import Example, Mention


def look(examples: list[Example]) -> Audit:
    return audit(
        examples, find([example.text for example in examples], 0.8), {}, constant_f1=constant_f1
    )


def test_a_multi_label_conflict_is_a_different_set_in_any_order() -> None:
    same = look(
        [
            Example("1", "text", ("a", "b")),
            Example("2", "text", ("b", "a")),
            Example("3", "own", ("b",)),
        ]
    )
    assert (same.exact_groups, same.conflicting_texts, same.accuracy_ceiling) == (1, 0, 1.0)
    other = look(
        [
            Example("1", "text", ("a", "b")),
            Example("2", "text", ("b",)),
            Example("3", "own", ("b",)),
            Example("4", "more", ()),
        ]
    )
    assert (other.conflicting_texts, other.conflicting_rows, other.accuracy_ceiling) == (1, 2, 0.75)


def test_the_majority_answer_of_multi_label_rows_scores_each_label_by_its_share() -> None:
    rows = [
        Example("1", "one", ("a", "b")),
        Example("2", "two", ("a", "b")),
        Example("3", "three", ("a",)),
        Example("4", "four", ("c",)),
    ]
    figures = look(rows)
    assert (figures.majority_label, figures.majority_accuracy) == ("a + b", 0.5)
    assert figures.majority_f1_macro == pytest.approx((2 * 0.75 / 1.75 + 2 * 0.5 / 1.5 + 0) / 3)


def test_two_names_of_one_given_side_are_one_side() -> None:
    texts = "The very same text of one abstract"
    assert (
        look(
            [Example("1", texts, ("a",), "val"), Example("2", texts, ("a",), "Validation")]
        ).given_across
        == 0
    )
    assert (
        look([Example("1", texts, ("a",), "val"), Example("2", texts, ("a",), "test")]).given_across
        == 1
    )
    assert (
        look([Example("1", texts, ("a",)), Example("2", texts, ("a",), "test")]).given_across == 0
    )


def test_the_audit_of_annotated_rows_counts_mentions_and_has_no_accuracy_ceiling() -> None:
    mention = Mention(0, 6, "asthma", "Disease")
    rows = [
        Example("a", "asthma one", ("Disease",), mentions=(mention,)),
        Example("b", "nothing here"),
    ]
    figures = audit(
        rows,
        find([row.text for row in rows], 0.8),
        {"a": "train", "b": "test"},
        constant_f1=constant_f1,
    )
    assert figures.num_mentions == 1
    assert "1 mentions, rows with each kind: Disease 1 (50.0%)" in figures.render()
    assert "always answering" not in figures.render()


def test_labels_that_differ_in_spelling_alone_are_named() -> None:
    labels = ["1", "1.0", "01", "no", "No ", "type 2", "type 1", "1.5"]
    assert alike_labels(labels) == [["01", "1", "1.0"], ["No ", "no"]]
    text = look(
        [
            Example(str(number), f"text {number}", (label,))
            for number, label in enumerate(("1", "1.0", "2"))
        ]
    ).render()
    assert "labels that differ in spelling alone: '1' and '1.0'\n" in text
    assert (
        "spelling" not in look([Example("1", "one", ("a",)), Example("2", "two", ("b",))]).render()
    )
