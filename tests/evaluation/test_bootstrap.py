import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from medray.errors import ConfigError
from medray.evaluation.bootstrap import METRICS, LabelResults, compare, interval


def draw(
    rng: np.random.Generator, num_rows: int, accuracy: float, num_labels: int = 2
) -> LabelResults:
    """A classifier that is right on a share of the rows."""
    truth = rng.integers(0, num_labels, num_rows)
    wrong = (truth + rng.integers(1, num_labels, num_rows)) % num_labels
    predictions = np.where(rng.random(num_rows) < accuracy, truth, wrong)
    return LabelResults(
        np.eye(num_labels, dtype=bool)[truth],
        np.eye(num_labels, dtype=bool)[predictions],
        positive=0,
    )


def by_scikit_learn(answers: LabelResults, metric: str, rows: np.ndarray) -> float:
    truth, predictions = answers.truth[rows].argmax(1), answers.predictions[rows].argmax(1)
    if metric.startswith("accuracy"):
        return float(accuracy_score(truth, predictions))
    if metric == "f1_binary":
        return float(f1_score(truth, predictions, pos_label=0, average="binary", zero_division=0))
    return float(f1_score(truth, predictions, average=metric.removeprefix("f1_"), zero_division=0))


@pytest.mark.parametrize("metric", METRICS)
def test_a_weighted_figure_is_that_of_the_rows_drawn_that_often(metric: str) -> None:
    rng = np.random.default_rng(0)
    answers = draw(rng, 60, 0.7, num_labels=2 if metric == "f1_binary" else 4)
    weights = rng.multinomial(60, np.full(60, 1 / 60), size=20).astype(float)
    values = [
        by_scikit_learn(answers, metric, np.repeat(np.arange(60), row.astype(int)))
        for row in weights
    ]
    assert answers.values(metric, weights) == pytest.approx(values)


def test_the_interval_holds_the_true_value_as_often_as_it_says() -> None:
    """Simulated: 95 % intervals of an accuracy that is known to be 0.8."""
    rng = np.random.default_rng(1)
    num_covered = 0
    for seed in range(200):
        result = interval(draw(rng, 150, 0.8), "accuracy", num_resamples=400, seed=seed)
        num_covered += result.low <= 0.8 <= result.high
    assert 0.90 <= num_covered / 200 <= 0.99


def test_a_paired_comparison_separates_what_two_intervals_cannot() -> None:
    rng = np.random.default_rng(2)
    first = draw(rng, 300, 0.85)
    predictions = first.predictions.copy()
    right = np.flatnonzero((first.truth == first.predictions).all(1))
    predictions[right[:12]] = ~predictions[
        right[:12]
    ]  # the second errs wherever the first does, and twelve times more
    second = LabelResults(first.truth, predictions, positive=0)
    one, two = interval(first, "accuracy"), interval(second, "accuracy")
    assert one.low < two.high
    result = compare(first, second, "accuracy")
    assert result.difference == pytest.approx(12 / 300)
    assert result.low > 0
    assert not result.is_tie
    assert result.p_value < 0.01


def test_a_classifier_ties_with_itself_and_with_its_equal() -> None:
    rng = np.random.default_rng(3)
    first = draw(rng, 200, 0.8)
    same = compare(first, first, "f1_macro")
    assert (same.difference, same.is_tie, same.p_value) == (0.0, True, 1.0)
    truth = first.truth.argmax(1)
    other = LabelResults(
        first.truth,
        np.eye(2, dtype=bool)[np.where(rng.random(200) < 0.8, truth, 1 - truth)],
        positive=0,
    )
    assert compare(first, other, "f1_macro").is_tie


def test_figures_that_have_no_interval_and_predictions_of_other_rows_are_refused() -> None:
    rng = np.random.default_rng(4)
    answers = draw(rng, 20, 0.8)
    with pytest.raises(
        ConfigError, match=r"'f1_makro' has no bootstrap interval.*did you mean 'f1_macro'"
    ):
        interval(answers, "f1_makro")
    with pytest.raises(ConfigError, match="two predictions of the same rows"):
        compare(answers, draw(rng, 20, 0.8), "accuracy")
    with pytest.raises(ConfigError, match="needs the positive label"):
        interval(LabelResults(answers.truth, answers.predictions), "f1_binary")
