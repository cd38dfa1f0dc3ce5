"""The confidence of generated answers, from the log-probabilities of their tokens. A logistic curve
is fitted on validation rows, of which a task says which answers are right."""

from collections.abc import Sequence

import numpy as np

from medray.config.study import CalibrationConfig
from medray.evaluation.calibration import LEAST, MEAN, fit_abstention, text_confidence
from medray.records import AS_IT_IS, CalibrationRecord, TextCalibrationRecord
from medray.types import Bools, Floats, Prediction

_RIDGE = 1.0  # on the weights, in standard deviations of the log-probabilities


def features(logprobs: Sequence[float]) -> dict[str, float]:
    """Return the mean log-probability of an answer's tokens, so that its length does not count, and
    the lowest one."""
    if not logprobs:
        return {}
    return {MEAN: float(np.mean(logprobs)), LEAST: float(min(logprobs))}


def fit(
    predictions: Sequence[Prediction], right: Sequence[bool], config: CalibrationConfig
) -> CalibrationRecord:
    """Fit the chance of being right, and a threshold if a precision is required. Refusals have no
    log-probabilities and are left out."""
    rows = [
        (row.figures, is_right)
        for row, is_right in zip(predictions, right, strict=True)
        if MEAN in row.figures
    ]
    if not rows:
        return AS_IT_IS
    inputs = np.array([[figures[MEAN], figures[LEAST]] for figures, _ in rows])
    truth = np.array([is_right for _, is_right in rows])
    curve = _fit_curve(inputs, truth)
    record = CalibrationRecord(num_rows=len(rows), texts=curve)
    if config.abstain_precision is None:
        return record
    confidences = np.array([text_confidence(curve, figures) for figures, _ in rows])
    rule = fit_abstention(confidences, truth, config.abstain_precision, config.abstain_level)
    return record.model_copy(update={"abstention": rule})


def _fit_curve(inputs: Floats, truth: Bools) -> TextCalibrationRecord:
    """Fit a logistic regression to Platt's targets, which stay off 0 and 1 for few rows."""
    from scipy.optimize import minimize

    centre, spread = inputs.mean(axis=0), np.maximum(inputs.std(axis=0), 1e-6)
    table = np.column_stack([np.ones(len(inputs)), (inputs - centre) / spread])
    num_right = int(truth.sum())
    targets = np.where(truth, (num_right + 1) / (num_right + 2), 1 / (len(truth) - num_right + 2))

    def loss(weights: Floats) -> float:
        odds = table @ weights
        ridge = 0.5 * _RIDGE * float(weights[1:] @ weights[1:])
        return float((np.logaddexp(0, odds) - targets * odds).sum()) + ridge

    weights = minimize(loss, np.zeros(table.shape[1]), method="BFGS").x
    slopes = weights[1:] / spread
    return TextCalibrationRecord(
        intercept=float(weights[0] - slopes @ centre),
        mean=float(slopes[0]),
        least=float(slopes[1]),
    )
