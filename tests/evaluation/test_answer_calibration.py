"""Calibration of answers to typed questions: how often the precision that a threshold promises is
kept."""

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medray.config.study import CalibrationConfig
from medray.evaluation import answer_calibration
from medray.evaluation.calibration import calibrate
from medray.tasks.decisions import task as decisions

NUM_SEEDS, NUM_ROWS, PRECISION, LEVEL = 20, 200, 0.9, 0.8


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[2] / "jobs" / "bench" / "promise.py"))


def task_of(bench: dict[str, Any]) -> decisions.Task:
    return decisions.Task(decisions.Options(name="decisions"), bench["QUESTIONS"])


@pytest.mark.parametrize("steepness", [1.0, 2.0])
def test_thresholds_per_question_keep_their_precision_as_often_as_promised(
    bench: dict[str, Any], steepness: float
) -> None:
    """Over 20 seeds with five questions each, at most a fifth of the thresholds, and what chance
    adds, answer with a lower expected precision."""
    config = CalibrationConfig(abstain_precision=PRECISION, abstain_level=LEVEL)
    promise = bench["Promise"]()
    for seed in range(NUM_SEEDS):
        rng = np.random.default_rng(seed)
        fit = bench["simulate"](rng, NUM_ROWS, steepness)
        fresh = bench["simulate"](rng, 500, steepness, is_soft=True)
        bench["check"](task_of(bench), config, fit, fresh, promise)
    assert len(promise.coverage) == NUM_SEEDS * 5
    assert promise.num_rules > 0.9 * NUM_SEEDS * 5
    assert np.mean(promise.coverage) > 0.3  # to abstain from all would keep any promise
    chance = 2 * np.sqrt(LEVEL * (1 - LEVEL) / promise.num_rules)
    assert promise.num_kept / promise.num_rules >= LEVEL - chance


def test_refusals_fit_nothing_and_stay_as_they_are(bench: dict[str, Any]) -> None:
    examples, predictions = bench["simulate"](np.random.default_rng(0), NUM_ROWS, 1.0)
    refusal = replace(
        predictions[0].answers[0], probabilities=(1 / 3,) * 3, abstained=True, is_refusal=True
    )
    rows = [replace(row, answers=(refusal, *row.answers[1:])) for row in predictions]
    record = answer_calibration.fit(rows, examples, CalibrationConfig(abstain_precision=PRECISION))
    assert record.answers is not None
    assert set(record.answers.abstention) == {"two", "three", "four", "five"}
    assert {row.answers[0] for row in calibrate(task_of(bench), record, rows)} == {refusal}
