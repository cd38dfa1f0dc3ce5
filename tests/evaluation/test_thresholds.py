import numpy as np
import pytest
from sklearn.metrics import f1_score

from medray.evaluation import thresholds
from medray.tasks.classification import Options, Task
from medray.types import Example, Prediction


def draw(
    rng: np.random.Generator, num_rows: int, shares: list[float], pull: float
) -> tuple[np.ndarray, np.ndarray]:
    """Truth by shares; probabilities of logits that know the truth a little, and lean by `pull` to
    the first class."""
    truth = rng.choice(len(shares), num_rows, p=shares)
    logits = rng.normal(0, 1.2, (num_rows, len(shares))) + 2 * np.eye(len(shares))[truth]
    logits[:, 0] += pull
    powers = np.exp(logits)
    return truth, powers / powers.sum(axis=1, keepdims=True)


def macro(truth: np.ndarray, predictions: np.ndarray) -> float:
    return float(f1_score(truth, predictions, average="macro"))


def test_thresholds_give_back_what_a_model_that_leans_to_one_class_lost() -> None:
    rng = np.random.default_rng(0)
    truth, probabilities = draw(rng, 400, [0.6, 0.2, 0.2], pull=2.0)
    limits = thresholds.fit_thresholds(truth, probabilities)
    assert limits is not None
    assert sum(limits) == pytest.approx(1)
    assert limits[0] > max(limits[1:])
    fresh, unseen = draw(rng, 20_000, [0.6, 0.2, 0.2], pull=2.0)
    assert (
        macro(fresh, thresholds.decide(unseen, np.array(limits)))
        > macro(fresh, unseen.argmax(axis=1)) + 0.03
    )


@pytest.mark.parametrize("num_rows", [30, 100, 300])
def test_where_there_is_nothing_to_gain_few_rows_do_not_overfit(num_rows: int) -> None:
    """Simulated: the guard costs nothing on fresh rows in the mean, where thresholds fitted without
    it do."""
    rng = np.random.default_rng(1)
    fresh, unseen = draw(rng, 20_000, [0.34, 0.33, 0.33], pull=0.0)
    own = macro(fresh, unseen.argmax(axis=1))
    with_guard, bare, num_limits = [], [], 0
    for _ in range(25):
        truth, probabilities = draw(rng, num_rows, [0.34, 0.33, 0.33], pull=0.0)
        limits = thresholds.fit_thresholds(truth, probabilities)
        num_limits += limits is not None
        with_guard.append(
            own if limits is None else macro(fresh, thresholds.decide(unseen, np.array(limits)))
        )
        bare.append(
            macro(
                fresh,
                thresholds.decide(unseen, thresholds.search_thresholds(truth, probabilities)),
            )
        )
    assert num_limits <= 4
    assert np.mean(with_guard) > own - 0.003
    assert np.mean(with_guard) >= np.mean(bare)


@pytest.mark.parametrize("lean", [0.0, -2.0])
@pytest.mark.parametrize("num_rows", [16, 64])
def test_a_threshold_for_each_label_gains_on_fresh_rows_however_few_it_is_fitted_on(
    num_rows: int, lean: float
) -> None:
    """Simulated: the mean of 20 splits, of probabilities that are right, and of ones that are too
    low."""
    rng, task = (
        np.random.default_rng(3),
        Task(Options(name="classification", multi_label=True), ("a", "b", "c")),
    )

    def rows(num: int) -> tuple[list[Prediction], list[Example]]:
        logits = rng.normal(0, 2, (num, 3)) + np.log([1.0, 0.4, 0.1])
        truth = rng.random((num, 3)) < 1 / (1 + np.exp(-logits))
        examples = [
            Example(str(row), "", tuple(np.array(task.labels)[active]))
            for row, active in enumerate(truth)
        ]
        return [
            Prediction(str(row), (), tuple(one))
            for row, one in enumerate(1 / (1 + np.exp(-logits - lean)))
        ], examples

    def f1(fitted_task: Task, predictions: list[Prediction], examples: list[Example]) -> float:
        return fitted_task.score(fitted_task.decide(predictions), examples).values["f1_macro"]

    fresh = rows(4000)
    gains = [f1(task.tune(*rows(num_rows)), *fresh) - f1(task, *fresh) for _ in range(20)]
    assert np.mean(gains) > (0.01 if lean == 0 else 0.15)


def test_a_label_that_no_validation_row_has_keeps_its_half() -> None:
    task = Task(Options(name="classification", multi_label=True), ("a", "b"))
    predictions = [Prediction("0", (), (0.2, 0.2)), Prediction("1", (), (0.1, 0.1))]
    task_with_limits = task.tune(predictions, [Example("0", "", ("a",)), Example("1", "")])
    assert task_with_limits.thresholds is not None
    assert (task_with_limits.thresholds[0] < 0.2, task_with_limits.thresholds[1]) == (True, 0.5)


def test_equal_thresholds_mean_the_most_probable_class_and_of_two_labels_it_is_a_threshold() -> (
    None
):
    probabilities = np.array([[0.6, 0.4], [0.2, 0.8], [0.35, 0.65]])
    assert thresholds.decide(probabilities, np.array([0.5, 0.5])).tolist() == [0, 1, 1]
    assert thresholds.decide(probabilities, np.array([0.3, 0.7])).tolist() == [0, 1, 0]


def test_a_class_that_no_row_has_and_a_single_row_are_no_error() -> None:
    truth, probabilities = draw(np.random.default_rng(2), 40, [0.5, 0.5, 0.0], pull=0.0)
    assert (
        thresholds.fit_thresholds(truth, probabilities) is None
        or len(thresholds.fit_thresholds(truth, probabilities) or ()) == 3
    )
    assert thresholds.fit_thresholds(np.array([0]), np.array([[0.4, 0.6]])) is None
