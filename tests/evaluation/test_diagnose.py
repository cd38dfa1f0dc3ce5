from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score

from medray.errors import ArtifactError
from medray.evaluation import analysis
from medray.evaluation.analysis import Analysis, ModelAnalysis
from medray.evaluation.bootstrap import (
    LabelResults,
    class_intervals,
    compare,
    interval,
    share_interval,
)
from medray.evaluation.diagnose import SplitResults, examine, suspects
from medray.evaluation.slices import Slicer
from medray.records import AbstentionRecord, CalibrationRecord
from medray.types import Example

LABELS = ("a", "b", "c")
OWN = CalibrationRecord()


def draw(
    rng: np.random.Generator,
    num_rows: int = 300,
    accuracy: float = 0.8,
    columns: dict[str, list[str]] | None = None,
) -> SplitResults:
    truth = rng.integers(0, 3, num_rows)
    predictions = np.where(
        rng.random(num_rows) < accuracy, truth, (truth + rng.integers(1, 3, num_rows)) % 3
    )
    decisions = np.eye(3, dtype=bool)[predictions]
    sure = rng.uniform(0.4, 1.0, num_rows)[:, None]
    probabilities = np.where(decisions, sure, (1 - sure) / 2)
    return SplitResults(
        [f"r{row}" for row in range(num_rows)],
        LabelResults(np.eye(3, dtype=bool)[truth], decisions),
        probabilities,
        columns or {},
    )


def look(
    rows: SplitResults,
    record: CalibrationRecord = OWN,
    multi_label: bool = False,
    metric: str = "f1_macro",
) -> analysis.SplitAnalysis:
    return examine(
        "test",
        rows,
        record,
        labels=LABELS[: rows.results.truth.shape[1]],
        multi_label=multi_label,
        metric=metric,
    )


def test_confusion_and_the_figures_of_each_class_are_those_of_scikit_learn() -> None:
    rows = draw(np.random.default_rng(0))
    truth, predictions = rows.results.truth.argmax(axis=1), rows.results.predictions.argmax(axis=1)
    result = look(rows)
    assert np.array(result.confusion).tolist() == confusion_matrix(truth, predictions).tolist()
    assert [figures.f1.value for figures in result.per_class] == pytest.approx(
        f1_score(truth, predictions, average=None)
    )
    assert all(figures.f1.low < figures.f1.value < figures.f1.high for figures in result.per_class)
    assert result.figure.value == pytest.approx(f1_score(truth, predictions, average="macro"))
    for figures in result.per_class:
        assert (
            sum(
                (
                    figures.true_positives,
                    figures.false_positives,
                    figures.false_negatives,
                    figures.true_negatives,
                )
            )
            == 300
        )


def test_bins_hold_every_row_and_the_error_is_their_weighted_distance() -> None:
    result = look(draw(np.random.default_rng(1))).before
    assert sum(part.num for part in result.bins) == 300
    assert result.ece == pytest.approx(
        sum(part.num * abs(part.confidence - part.share_right) for part in result.bins) / 300
    )
    assert all(part.low <= part.confidence <= part.high for part in result.bins)


def test_the_risk_curve_ends_at_every_row_and_counts_what_is_right_above_each_threshold() -> None:
    rows = draw(np.random.default_rng(2))
    points = look(rows).risk_coverage
    right = (rows.results.truth == rows.results.predictions).all(axis=1)
    sure = rows.probabilities.max(axis=1)
    assert points[0].coverage == 1
    assert points[0].precision == pytest.approx(right.mean())
    for point in points:
        answered = sure >= point.threshold
        assert (point.num_answered, point.precision) == (
            answered.sum(),
            pytest.approx(right[answered].mean()),
        )


def test_the_precision_of_abstention_has_an_interval() -> None:
    rule = AbstentionRecord(precision=0.95, level=0.9, threshold=0.7, coverage=0.5)
    rows = draw(np.random.default_rng(3))
    result = look(rows, CalibrationRecord(abstention=rule)).abstention
    answered = rows.probabilities.max(axis=1) >= 0.7
    right = (rows.results.truth == rows.results.predictions).all(axis=1)[answered]
    assert result is not None
    assert result.precision is not None
    assert (result.num_answered, result.precision.value) == (
        answered.sum(),
        pytest.approx(right.mean()),
    )
    assert result.precision.low < result.precision.value < result.precision.high
    nothing = look(
        rows, CalibrationRecord(abstention=rule.model_copy(update={"threshold": None}))
    ).abstention
    assert nothing is not None
    assert (nothing.num_answered, nothing.precision) == (0, None)


def test_a_slice_that_is_worse_than_chance_explains_is_reported() -> None:
    rng = np.random.default_rng(4)
    sources = [
        ("good", "bad", "rare")[min(row % 20, 2) if row % 20 == 2 else row % 2]
        for row in range(400)
    ]
    rows = draw(rng, 400, 0.95, {"source": sources})
    is_bad = np.array(sources) == "bad"
    predictions = rows.results.predictions.copy()
    wrong_rows = np.flatnonzero(is_bad)[::2]
    predictions[wrong_rows] = np.roll(predictions[wrong_rows], 1, axis=1)
    worse = SplitResults(
        rows.ids, LabelResults(rows.results.truth, predictions), rows.probabilities, rows.columns
    )
    worst = look(worse).worst
    assert worst is not None
    assert (worst.slice.column, worst.slice.value, worst.is_below) == ("source", "bad", True)
    even = look(rows).worst
    assert even is not None
    assert not even.is_below


def test_a_slice_without_rows_enough_or_without_the_label_is_not_the_worst() -> None:
    rows = draw(np.random.default_rng(5), 100, 0.9, {"place": ["few"] * 5 + ["many"] * 95})
    few = np.arange(100) < 5
    answers = LabelResults(
        rows.results.truth,
        np.where(few[:, None], np.roll(rows.results.truth, 1, axis=1), rows.results.predictions),
    )
    result = look(SplitResults(rows.ids, answers, rows.probabilities, rows.columns))
    assert result.worst is not None
    assert result.worst.slice.value != "few"
    one = SplitResults(
        rows.ids,
        rows.results,
        rows.probabilities,
        {"truth": [LABELS[at] for at in rows.results.truth.argmax(axis=1)]},
    )
    assert [part.f1 for part in look(one).slices if part.column == "truth"] == [
        None
    ] * 3  # macro over one label is no F1 of the model


def test_mistakes_come_the_surest_first_and_hold_no_text() -> None:
    rows = draw(np.random.default_rng(6))
    result = look(rows).mistakes
    wrong = (rows.results.truth != rows.results.predictions).any(axis=1)
    assert {part.row_id for part in result} == {rows.ids[row] for row in np.flatnonzero(wrong)}
    assert [part.confidence for part in result] == sorted(
        (part.confidence for part in result), reverse=True
    )
    assert all(part.truth != part.predicted for part in result)


def test_labels_that_were_changed_are_suspected_before_others() -> None:
    rng = np.random.default_rng(7)
    truth = rng.integers(0, 3, 300)
    noise = rng.normal(0, 1, (300, 3)) + 4 * np.eye(3)[truth]
    probabilities = np.exp(noise) / np.exp(noise).sum(axis=1, keepdims=True)
    labels = truth.copy()
    labels[:15] = (labels[:15] + 1) % 3
    ids = [str(row) for row in range(300)]
    result = suspects(ids, np.eye(3, dtype=bool)[labels], probabilities, LABELS, multi_label=False)
    first = [int(part.row_id) for part in result[:10]]
    assert sum(row < 15 for row in first) >= 9
    assert all(
        part.suggested == (LABELS[truth[int(part.row_id)]],)
        for part in result[:10]
        if int(part.row_id) < 15
    )
    several = np.eye(3, dtype=bool)[labels]
    several[20] = [True, True, True]
    doubtful = suspects(ids, several, probabilities, LABELS, multi_label=True)
    assert sum(int(part.row_id) < 15 or part.row_id == "20" for part in doubtful[:12]) >= 10
    clean = suspects(ids, np.eye(3, dtype=bool)[truth], probabilities, LABELS, multi_label=False)
    assert len(clean) < len(result)


def test_several_labels_have_counts_instead_of_one_confusion_matrix() -> None:
    rng = np.random.default_rng(8)
    probabilities = rng.random((200, 2))
    answers = LabelResults(rng.random((200, 2)) < probabilities, probabilities >= 0.5)
    result = look(
        SplitResults([str(row) for row in range(200)], answers, probabilities, {}),
        multi_label=True,
    )
    assert result.confusion == ()
    assert sum(part.num for part in result.before.bins) == 400
    assert result.before.ece < 0.1  # truth was drawn by these probabilities


def examples(texts: Sequence[str], **columns: Sequence[str | None]) -> list[Example]:
    rows = []
    for number, text in enumerate(texts):
        metadata = {
            name: value for name, values in columns.items() if (value := values[number]) is not None
        }
        rows.append(Example(str(number), text, ("a",), metadata=metadata))
    return rows


def test_slices_are_thirds_of_numbers_and_the_values_of_columns_that_have_few() -> None:
    rows = examples(
        ["word " * (number + 1) for number in range(60)],
        year=[str(1990 + number) if number else None for number in range(60)],
        title=[f"title {number}" for number in range(60)],
        site=["A" if number % 2 else None for number in range(60)],
        label=["x" if number % 3 else "y" for number in range(60)],
        same=["one"] * 60,
    )
    result = Slicer.of(rows).columns(rows)
    assert result.keys() == {"length", "year", "site", "metadata.label"}
    assert {value: result["length"].count(value) for value in result["length"]} == {
        "at most 20 words": 20,
        "over 20, at most 40 words": 20,
        "over 40 words": 20,
    }
    assert result["year"][0] == "(none)"
    assert len(set(result["year"])) == 4
    assert set(result["site"]) == {"A", "(none)"}
    other = Slicer.of(rows).columns(examples(["word"], site=["B"], year=["not a year"]))
    assert (other["length"], other["site"], other["year"]) == (
        ["at most 20 words"],
        ["B"],
        ["(none)"],
    )


def test_an_analysis_comes_back_from_its_file_as_it_was() -> None:
    split_analysis = look(draw(np.random.default_rng(9)))
    whole = Analysis(
        "cancer",
        LABELS,
        False,
        "one",
        (ModelAnalysis("one", CalibrationRecord(temperature=1.5), split_analysis, split_analysis),),
    )
    assert analysis.from_json(analysis.to_json(whole), "analysis.json") == whole
    with pytest.raises(ArtifactError, match=r"analysis\.json: study is not valid"):
        analysis.from_json(b'{"study": 1}', "analysis.json")


@pytest.mark.parametrize(
    ("num_rows", "accuracy"),
    [
        (60, 0.9),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((200, 0.92), (200, 0.7))),
    ],
)
def test_intervals_of_f1_hold_the_true_value_as_often_as_they_say(
    num_rows: int, accuracy: float
) -> None:
    """Simulated: macro F1 and the F1 of a class, whose true values are those of a million rows."""
    rng = np.random.default_rng(10)
    million = draw(rng, 1_000_000, accuracy).results
    macro = f1_score(million.truth.argmax(axis=1), million.predictions.argmax(axis=1), average=None)
    num_covered = np.zeros(2)
    for seed in range(200):
        answers = draw(rng, num_rows, accuracy).results
        whole, one = (
            interval(answers, "f1_macro", num_resamples=400, seed=seed),
            class_intervals(answers, num_resamples=400, seed=seed)[0],
        )
        num_covered += [whole.low <= macro.mean() <= whole.high, one.low <= macro[0] <= one.high]
    assert (num_covered / 200 >= 0.90).all(), num_covered / 200
    assert (num_covered / 200 <= 0.99).all(), num_covered / 200


def test_the_interval_of_a_difference_covers_the_true_one_as_often_as_it_says() -> None:
    """Simulated: two models that err independently on the same rows, one 5 points better; and two
    equal ones."""
    rng = np.random.default_rng(11)

    def pair(first: float, second: float) -> tuple[LabelResults, LabelResults]:
        truth = rng.integers(0, 2, 200)
        decisions = [
            np.where(rng.random(200) < accuracy, truth, 1 - truth) for accuracy in (first, second)
        ]
        return tuple(
            LabelResults(np.eye(2, dtype=bool)[truth], np.eye(2, dtype=bool)[decision])
            for decision in decisions
        )  # type: ignore[return-value]

    better = [
        compare(*pair(0.9, 0.85), "f1_macro", num_resamples=400, seed=seed) for seed in range(200)
    ]
    assert 0.90 <= np.mean([result.low <= 0.05 <= result.high for result in better]) <= 0.99
    equal = [
        compare(*pair(0.9, 0.9), "f1_macro", num_resamples=400, seed=seed) for seed in range(200)
    ]
    assert 0.90 <= np.mean([result.is_tie for result in equal]) <= 0.99


def test_few_rows_that_are_all_right_have_an_interval_all_the_same() -> None:
    truth = np.eye(2, dtype=bool)[np.arange(20) % 2]
    result = interval(LabelResults(truth, truth), "f1_macro")
    assert result.low == pytest.approx(0.025 ** (1 / 20))
    assert result.high == 1.0
    assert [part.low for part in class_intervals(LabelResults(truth, truth))] == pytest.approx(
        [0.025 ** (1 / 10)] * 2
    )
    assert interval(LabelResults(truth, ~truth), "accuracy").high == pytest.approx(
        1 - 0.025 ** (1 / 20)
    )
    assert share_interval(20, 20).low == pytest.approx(0.025 ** (1 / 20))


def test_of_similar_slices_hardly_one_is_reported_as_worse() -> None:
    """Simulated: eight sources that differ by chance alone. Without widening the interval a fifth
    of the looks would find one."""
    rng = np.random.default_rng(12)
    columns = {"source": [f"s{row % 8}" for row in range(320)]}
    result = [look(draw(rng, 320, 0.85, columns)).worst for _ in range(60)]
    assert np.mean([worst is not None and worst.is_below for worst in result]) <= 0.1


def test_a_label_is_not_suspected_for_an_answer_less_sure_than_that_label_usually_is() -> None:
    truth = np.eye(2, dtype=bool)[[0, 0, 0, 1, 1, 1]]
    probabilities = np.array(
        [[0.9, 0.1], [0.95, 0.05], [0.4, 0.6], [0.05, 0.95], [0.05, 0.95], [0.02, 0.98]]
    )
    assert suspects([*"abcdef"], truth, probabilities, LABELS[:2], multi_label=False) == ()
    probabilities[2] = [0.01, 0.99]
    (result,) = suspects([*"abcdef"], truth, probabilities, LABELS[:2], multi_label=False)
    assert (result.row_id, result.given, result.suggested, result.doubt) == (
        "c",
        ("a",),
        ("b",),
        pytest.approx(0.98),
    )
