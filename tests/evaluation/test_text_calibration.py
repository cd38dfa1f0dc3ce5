"""The confidence of generated answers, on drawn log-probabilities."""

import numpy as np
import pytest

from medray.config.study import CalibrationConfig
from medray.evaluation import text_calibration
from medray.evaluation.calibration import LEAST, MEAN, calibrate, text_confidence
from medray.records import AS_IT_IS, CalibrationRecord
from medray.types import Prediction


class Texts:
    """A task without labels."""

    labels = ()

    def head(self) -> None:
        return None


def draw(num: int, seed: int) -> tuple[list[Prediction], list[bool]]:
    """Answers whose chance of being right follows from their mean log-probability."""
    rng = np.random.default_rng(seed)
    means = -rng.exponential(1.0, num)
    right = rng.random(num) < 1 / (1 + np.exp(-(4 + 3 * means)))
    rows = [
        Prediction(str(at), (), (), text="a", figures={MEAN: float(mean), LEAST: float(mean) - 1})
        for at, mean in enumerate(means)
    ]
    return rows, right.tolist()


def error(record: CalibrationRecord, seed: int) -> float:
    rows, right = draw(4000, seed)
    sure = np.array([row.confidence for row in calibrate(Texts(), record, rows)], dtype=float)
    bins = np.minimum((sure * 10).astype(int), 9)
    gaps = [abs((sure - right)[bins == at].sum()) for at in range(10)]
    return float(np.sum(gaps) / len(rows))


def test_confidence_is_the_chance_of_being_right_on_new_answers() -> None:
    record = text_calibration.fit(*draw(800, 1), CalibrationConfig())
    assert record.num_rows == 800
    assert error(record, 2) < 0.05
    assert record.texts is not None
    sure = [text_confidence(record.texts, {MEAN: mean, LEAST: mean - 1}) for mean in (-3, -1, -0.1)]
    assert sure == sorted(sure)


def test_a_promised_precision_is_kept_on_new_answers_as_often_as_promised() -> None:
    config, num_kept = CalibrationConfig(abstain_precision=0.9, abstain_level=0.8), 0
    coverages: list[float] = []
    for seed in range(30):
        record = text_calibration.fit(*draw(200, seed), config)
        assert record.abstention is not None
        rows, right = draw(4000, seed + 1000)
        answers = [not row.abstained for row in calibrate(Texts(), record, rows)]
        coverages.append(float(np.mean(answers)))
        # Without any answer, no promise is broken.
        num_kept += not any(answers) or bool(np.array(right)[answers].mean() >= 0.9)
    assert num_kept >= 24
    assert 0.3 < np.median(coverages) < 0.8


def test_a_refusal_has_no_confidence_and_counts_in_no_fit() -> None:
    rows, right = draw(50, 3)
    refusal = Prediction("r", (), (), text="I cannot help.")
    record = text_calibration.fit([*rows, refusal], [*right, True], CalibrationConfig())
    assert record == text_calibration.fit(rows, right, CalibrationConfig())
    (row,) = calibrate(Texts(), record, [refusal])
    assert (row.confidence, row.abstained) == (None, False)
    assert text_calibration.fit([refusal], [True], CalibrationConfig()) == AS_IT_IS
    assert text_calibration.features([]) == {}
    assert text_calibration.features([-1.0, -3.0]) == {MEAN: -2.0, LEAST: -3.0}


@pytest.mark.parametrize("is_right", [True, False])
def test_answers_that_are_all_alike_make_nobody_certain(is_right: bool) -> None:
    rows, _ = draw(20, 4)
    record = text_calibration.fit(rows, [is_right] * 20, CalibrationConfig(abstain_precision=0.9))
    sure = [row.confidence or 0.0 for row in calibrate(Texts(), record, rows)]
    assert all((value > 0.8) == is_right and 0.01 < value < 0.99 for value in sure)
    assert record.abstention is not None
    # Even 20 right answers prove 90 % at the level of 0.8.
    assert (record.abstention.threshold is not None) == is_right
