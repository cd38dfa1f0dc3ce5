"""Every metric from counts equals that of a plain computation: of any rows, also of
classes that never occur."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medray.evaluation import mention_scores, metrics
from medray.evaluation.bootstrap import LabelResults
from medray.evaluation.diagnose import SplitResults, examine
from medray.records import AS_IT_IS
from medray.tasks.instruct.figures import token_f1
from medray.types import Mention

LABELS = ["a", "b", "c", "d"]
PLACES = st.integers(0, len(LABELS) - 1)
ONE_LABEL = st.lists(st.tuples(PLACES, PLACES), min_size=1, max_size=30)
SETS = st.lists(st.tuples(st.sets(PLACES), st.sets(PLACES)), min_size=1, max_size=30)
SAME_EVERY_RUN = settings(deadline=None, derandomize=True, database=None, max_examples=50)
pytestmark = pytest.mark.filterwarnings("error")


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def of_classes(
    rows: list[tuple[set[int], set[int]]], weights: np.ndarray
) -> list[tuple[float, float, float, float]]:
    """Of each class its precision, recall, F1 and the weight of the rows that have it, by the
    textbook's formulas."""
    result = []
    for place in range(len(LABELS)):
        hits = sum(
            weight
            for (true, predictions), weight in zip(rows, weights, strict=True)
            if place in true and place in predictions
        )
        true = sum(weight for (true, _), weight in zip(rows, weights, strict=True) if place in true)
        predictions = sum(
            weight
            for (_, predictions), weight in zip(rows, weights, strict=True)
            if place in predictions
        )
        precision, recall = share(hits, predictions), share(hits, true)
        result.append((precision, recall, share(2 * precision * recall, precision + recall), true))
    return result


def averages(rows: list[tuple[set[int], set[int]]], weights: np.ndarray) -> dict[str, float]:
    classes = of_classes(rows, weights)
    pairs = [pair for pair, weight in zip(rows, weights, strict=True) if weight]
    occurring = [
        figures
        for place, figures in enumerate(classes)
        if any(place in true | predictions for true, predictions in pairs)
    ]
    hits = sum(
        weight * len(true & predictions)
        for (true, predictions), weight in zip(rows, weights, strict=True)
    )
    precision = share(
        hits,
        sum(
            weight * len(predictions)
            for (_, predictions), weight in zip(rows, weights, strict=True)
        ),
    )
    recall = share(
        hits, sum(weight * len(true) for (true, _), weight in zip(rows, weights, strict=True))
    )
    return {
        "f1_macro": share(sum(f1 for _, _, f1, _ in occurring), len(occurring)),
        "f1_micro": share(2 * precision * recall, precision + recall),
        "f1_weighted": share(
            sum(f1 * true for _, _, f1, true in classes), sum(true for *_, true in classes)
        ),
        "precision_macro": share(sum(precision for precision, *_ in occurring), len(occurring)),
        "recall_macro": share(sum(recall for _, recall, *_ in occurring), len(occurring)),
    }


def indicators(sets: list[set[int]]) -> np.ndarray:
    return np.array([[place in row for place in range(len(LABELS))] for row in sets])


@given(SETS, st.randoms(use_true_random=False))
@SAME_EVERY_RUN
def test_figures_of_label_sets_and_of_their_resamples(rows: list, random) -> None:
    truth, predictions = (
        indicators([true for true, _ in rows]),
        indicators([labels for _, labels in rows]),
    )
    result = metrics.multi_label(truth, np.full(truth.shape, 0.5), predictions, LABELS)
    values = averages(rows, np.ones(len(rows)))
    assert {name: result.values[name] for name in values} == pytest.approx(values)
    for label, (precision, recall, f1, support) in zip(
        LABELS, of_classes(rows, np.ones(len(rows))), strict=True
    ):
        figures = result.per_class[label]
        assert (
            figures["precision"],
            figures["recall"],
            figures["f1"],
            figures["support"],
        ) == pytest.approx((precision, recall, f1, support))
    alike = [
        1.0 if not true | answer else share(2 * len(true & answer), len(true) + len(answer))
        for true, answer in rows
    ]
    assert result.values["f1_samples"] == pytest.approx(np.mean(alike))
    weights = np.array([[random.randint(0, 2) for _ in rows] for _ in range(3)], dtype=float)
    answers = LabelResults(truth, predictions, positive=1)
    for name in ("f1_macro", "f1_micro", "f1_weighted"):
        assert answers.values(name, weights) == pytest.approx(
            [averages(rows, row)[name] for row in weights]
        )
    assert answers.values("f1_binary", weights) == pytest.approx(
        [of_classes(rows, row)[1][2] for row in weights]
    )


@given(ONE_LABEL)
@SAME_EVERY_RUN
def test_figures_of_one_label_and_of_their_analysis(rows: list[tuple[int, int]]) -> None:
    truth, predictions = [true for true, _ in rows], [answer for _, answer in rows]
    probabilities = np.full((len(rows), len(LABELS)), 0.25)
    result = metrics.single_label(truth, probabilities, predictions, LABELS, None)
    sets = [({true}, {answer}) for true, answer in rows]
    values = averages(sets, np.ones(len(rows)))
    assert {name: result.values[name] for name in values} == pytest.approx(values)
    one_hot = np.eye(len(LABELS), dtype=bool)
    answers = LabelResults(one_hot[truth], one_hot[predictions])
    split_results = SplitResults(
        [str(number) for number in range(len(rows))], answers, probabilities, {}
    )
    inside = examine(
        "test", split_results, AS_IT_IS, labels=LABELS, multi_label=False, metric="f1_macro"
    )
    assert inside.figure.value == pytest.approx(values["f1_macro"])
    assert [list(row) for row in inside.confusion] == result.confusion
    for figures, (precision, recall, f1, support) in zip(
        inside.per_class, of_classes(sets, np.ones(len(rows))), strict=True
    ):
        assert (figures.precision, figures.recall, figures.f1.value) == pytest.approx(
            (precision, recall, f1)
        )
        assert figures.true_positives + figures.false_negatives == support
        assert (
            figures.true_positives
            + figures.false_positives
            + figures.false_negatives
            + figures.true_negatives
            == len(rows)
        )


@given(SETS)
@SAME_EVERY_RUN
def test_figures_of_mentions_and_of_words(rows: list) -> None:
    """A mention of each kind of a set, all in one place, so that one is found where its kind is."""
    spans = [
        tuple([Mention(0, 4, "", LABELS[place]) for place in sorted(side)] for side in row)
        for row in rows
    ]
    tallies = mention_scores.tally(
        [str(number) for number in range(len(rows))], spans, {}, [{}] * len(rows)
    )
    result = mention_scores.score(tallies, spans, LABELS)
    assert result.values["mention_f1"] == result.values["mention_f1_overlap"]
    assert result.values["mention_f1"] == pytest.approx(
        averages(rows, np.ones(len(rows)))["f1_micro"]
    )
    for label, (precision, recall, f1, support) in zip(
        LABELS, of_classes(rows, np.ones(len(rows))), strict=True
    ):
        values = {
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "f1_overlap": f1,
            "support": support,
        }
        assert result.per_class[label] == pytest.approx(values)
    true, answer = (
        [LABELS[place] for row in rows for place in sorted(row[side])] for side in (0, 1)
    )
    common = sum(min(true.count(label), answer.count(label)) for label in LABELS)
    assert token_f1(answer, true) == pytest.approx(
        share(2 * common, len(true) + len(answer)) if true or answer else 1.0
    )


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10)), min_size=1, max_size=20))
@SAME_EVERY_RUN
def test_no_threshold_gives_a_higher_f1_than_the_chosen_one(rows: list[tuple[bool, int]]) -> None:
    truth, scores = (
        np.array([true for true, _ in rows]),
        np.array([score / 10 for _, score in rows]),
    )

    def f1(threshold: float) -> float:
        is_predicted = scores >= threshold
        return share(2 * (truth & is_predicted).sum(), truth.sum() + is_predicted.sum())

    (threshold,) = metrics.thresholds(truth[:, None], scores[:, None])
    if truth.any():
        assert f1(threshold) == pytest.approx(max(f1(other) for other in np.linspace(0, 1, 41)))
    else:
        assert threshold == 0.5
