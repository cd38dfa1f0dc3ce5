import numpy as np
import pytest
from sklearn.metrics import log_loss as by_scikit_learn

from medray.evaluation import calibration
from medray.evaluation.bootstrap import LabelResults
from medray.evaluation.calibration import (
    apply,
    confidence,
    fit,
    fit_abstention,
    fit_temperature,
    rescale,
)
from medray.evaluation.diagnose import reliability
from medray.evaluation.metrics import log_loss
from medray.records import CalibrationRecord


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def draw(
    rng: np.random.Generator, num_rows: int, num_labels: int, steepness: float
) -> tuple[np.ndarray, np.ndarray]:
    """Truth that follows the probabilities of logits; the model's logits are these times
    the steepness."""
    logits = rng.normal(0, 2, (num_rows, num_labels))
    truth = (softmax(logits).cumsum(axis=1) > rng.random((num_rows, 1))).argmax(axis=1)
    return softmax(steepness * logits), np.eye(num_labels, dtype=bool)[truth]


def several(
    rng: np.random.Generator, num_rows: int, steepness: float
) -> tuple[np.ndarray, np.ndarray]:
    logits = rng.normal(0, 2, (num_rows, 3))
    truth = rng.random((num_rows, 3)) < 1 / (1 + np.exp(-logits))
    return 1 / (1 + np.exp(-steepness * logits)), truth


def most_probable(probabilities: np.ndarray) -> np.ndarray:
    return np.eye(probabilities.shape[1], dtype=bool)[probabilities.argmax(axis=1)]


@pytest.mark.parametrize("steepness", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("multi_label", [False, True])
def test_the_temperature_that_was_hidden_is_found(steepness: float, multi_label: bool) -> None:
    rng = np.random.default_rng(0)
    probabilities, truth = (
        several(rng, 5000, steepness) if multi_label else draw(rng, 5000, 4, steepness)
    )
    assert fit_temperature(probabilities, truth, multi_label=multi_label) == pytest.approx(
        steepness, rel=0.1
    )


@pytest.mark.document(
    "004",
    "for the future: answers have a confidence",
    where="`calibration`",
    how="of labels; of answers in words where `task.right_answer` says what is right",
)
def test_calibration_lowers_the_error_of_confidences_on_rows_it_has_not_seen() -> None:
    rng = np.random.default_rng(1)
    probabilities, truth = draw(rng, 400, 3, 3.0)
    record = fit(
        probabilities,
        truth,
        most_probable(probabilities),
        multi_label=False,
        precision=None,
        level=0.9,
    )
    fresh, right = draw(rng, 4000, 3, 3.0)
    answers = LabelResults(right, most_probable(fresh))
    calibrated = apply(record, fresh, answers.predictions, multi_label=False).probabilities
    before, after = (
        reliability(values, answers, multi_label=False) for values in (fresh, calibrated)
    )
    assert before.ece > 0.1
    assert after.ece < 0.03
    assert after.log_loss < before.log_loss
    assert (calibrated.argmax(axis=1) == fresh.argmax(axis=1)).all()
    assert calibrated.sum(axis=1) == pytest.approx(1.0)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("num_rows", [2, 7, 40])
def test_validation_log_loss_never_gets_worse(num_rows: int, multi_label: bool) -> None:
    rng = np.random.default_rng(2)
    for _ in range(30):
        steepness = float(rng.uniform(0.1, 5))
        probabilities, truth = (
            several(rng, num_rows, steepness) if multi_label else draw(rng, num_rows, 3, steepness)
        )
        calibrated = rescale(
            probabilities,
            fit_temperature(probabilities, truth, multi_label=multi_label),
            multi_label=multi_label,
        )
        assert log_loss(calibrated, truth, multi_label=multi_label) <= log_loss(
            probabilities, truth, multi_label=multi_label
        )


def test_rows_that_are_all_right_do_not_make_a_model_certain() -> None:
    def fit_temperature_to(num_rows: int) -> float:
        probabilities, truth = (
            np.tile([0.8, 0.2], (num_rows, 1)),
            np.tile([True, False], (num_rows, 1)),
        )
        return float(
            rescale(
                probabilities,
                fit_temperature(probabilities, truth, multi_label=False),
                multi_label=False,
            )[0, 0]
        )

    assert fit_temperature_to(20) == 0.8
    assert 0.9 < fit_temperature_to(100) < 0.99


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("num_rows", [16, 32, 64])
def test_few_rows_do_not_cost_more_than_no_temperature_and_help_a_model_that_is_far_off(
    num_rows: int, multi_label: bool
) -> None:
    """Simulated: the mean of 60 fits on fresh rows, of models that are calibrated, nearly, and not
    at all."""
    rng = np.random.default_rng(7)
    draw_rows = several if multi_label else lambda rng, num, steepness: draw(rng, num, 3, steepness)
    gains = {}
    for steepness in (0.85, 1.0, 1.2, 4.0):
        fresh, right = draw_rows(rng, 3000, steepness)
        own = log_loss(fresh, right, multi_label=multi_label)
        temperatures = [
            fit_temperature(*draw_rows(rng, num_rows, steepness), multi_label=multi_label)
            for _ in range(60)
        ]
        losses = [
            log_loss(
                rescale(fresh, temperature, multi_label=multi_label), right, multi_label=multi_label
            )
            for temperature in temperatures
        ]
        gains[steepness] = own - np.mean(losses)
    assert min(gains.values()) > -0.002
    assert gains[4.0] > 0.1


def test_probabilities_of_zero_and_one_are_scaled_to_numbers() -> None:
    hard = np.array([[1.0, 0.0], [0.0, 1.0]])
    truth = np.array([[True, False], [True, False]])
    for multi_label in (False, True):
        calibrated = rescale(hard, 20.0, multi_label=multi_label)
        assert np.isfinite(calibrated).all()
        assert np.isfinite(fit_temperature(hard, truth, multi_label=multi_label))


def test_the_log_loss_is_that_of_scikit_learn() -> None:
    probabilities, truth = draw(np.random.default_rng(3), 50, 3, 1.0)
    assert log_loss(probabilities, truth, multi_label=False) == pytest.approx(
        by_scikit_learn(truth.argmax(axis=1), probabilities)
    )


def test_without_a_fit_nothing_changes() -> None:
    probabilities, _ = draw(np.random.default_rng(4), 10, 3, 1.0)
    calibrated = apply(
        CalibrationRecord(), probabilities, most_probable(probabilities), multi_label=False
    )
    assert calibrated.probabilities is probabilities
    assert not calibrated.abstained.any()
    assert (calibrated.confidence == probabilities.max(axis=1)).all()


def test_the_confidence_of_several_labels_is_that_of_the_least_certain() -> None:
    predictions = np.array([[True, False], [False, False]])
    assert confidence(
        np.array([[0.9, 0.3], [0.2, 0.1]]), predictions, multi_label=True
    ) == pytest.approx([0.7, 0.8])


@pytest.mark.parametrize(
    ("spread", "steepness", "num_rows"),
    [
        (3.3, 1.0, 200),
        (6.0, 0.5, 200),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((3.3, 2.0, 500), (6.0, 1.0, 200))
        ),
    ],
)
def test_the_target_precision_holds_on_fresh_rows_as_often_as_promised(
    spread: float, steepness: float, num_rows: int
) -> None:
    """Simulated: of 300 thresholds that were fitted, at most a tenth (and what chance adds) answer
    with less than 0.95."""
    rng = np.random.default_rng(5)

    def rows(num: int) -> tuple[np.ndarray, np.ndarray]:
        logits = np.abs(rng.normal(0, spread, num))
        return 1 / (1 + np.exp(-steepness * logits)), rng.random(num) < 1 / (1 + np.exp(-logits))

    sure, right = rows(200_000)
    num_missed = 0
    for _ in range(300):
        rule = fit_abstention(*rows(num_rows), 0.95, 0.9)
        if rule.threshold is not None:
            answered = sure >= rule.threshold
            num_missed += right[answered].mean() < 0.95
    assert num_missed / 300 <= 0.1 + 2 * np.sqrt(0.1 * 0.9 / 300)


def test_a_model_that_is_good_enough_answers_every_row() -> None:
    rule = fit_abstention(np.linspace(0.9, 1.0, 100), np.ones(100, dtype=bool), 0.95, 0.9)
    assert (rule.coverage, rule.threshold) == (1.0, pytest.approx(0.45))


def test_too_few_rows_can_promise_nothing_and_then_everything_is_abstained_from() -> None:
    rule = fit_abstention(np.linspace(0.9, 1.0, 20), np.ones(20, dtype=bool), 0.95, 0.9)
    assert (rule.coverage, rule.threshold) == (0.0, None)
    probabilities, _ = draw(np.random.default_rng(6), 10, 2, 1.0)
    calibrated = apply(
        CalibrationRecord(abstention=rule),
        probabilities,
        most_probable(probabilities),
        multi_label=False,
    )
    assert calibrated.abstained.all()


def test_rows_of_equal_confidence_are_answered_together_or_not_at_all() -> None:
    sure = np.repeat([0.99, 0.6], [100, 100])
    right = np.concatenate([np.ones(100, dtype=bool), np.arange(100) % 2 == 0])
    rule = fit_abstention(sure, right, 0.95, 0.9)
    assert (rule.coverage, rule.threshold) == (0.5, pytest.approx(0.795))


def test_a_record_obeys_its_threshold() -> None:
    probabilities, truth = draw(np.random.default_rng(7), 500, 2, 1.0)
    record = fit(
        probabilities,
        truth,
        most_probable(probabilities),
        multi_label=False,
        precision=0.9,
        level=0.9,
    )
    calibrated = calibration.apply(
        record, probabilities, most_probable(probabilities), multi_label=False
    )
    assert record.abstention is not None
    assert record.abstention.threshold is not None
    assert 0 < record.abstention.coverage < 1
    assert (calibrated.abstained == (calibrated.confidence < record.abstention.threshold)).all()
    assert (~calibrated.abstained).mean() == pytest.approx(record.abstention.coverage)


def test_a_threshold_beyond_one_that_failed_is_not_tested() -> None:
    sure = np.concatenate([np.linspace(1.0, 0.99, 100), np.linspace(0.9, 0.85, 900)])
    right = np.ones(1000, dtype=bool)
    right[100:130] = False
    rule = fit_abstention(sure, right, 0.95, 0.9)
    assert (
        0.08 <= rule.coverage <= 0.11
    )  # of all rows 0.97 are right, which a search for the best threshold would take


def test_a_dozen_rows_hardly_move_a_model_that_is_calibrated() -> None:
    rng = np.random.default_rng(8)
    calibrated = [fit_temperature(*draw(rng, 12, 2, 1.0), multi_label=False) for _ in range(40)]
    assert all(0.4 < temperature < 2.5 for temperature in calibrated)
