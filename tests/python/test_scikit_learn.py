"""scikit-learn's own checks of estimators: `python tests/python/test_scikit_learn.py` lists them.

They give numbers in two dimensions, so the estimator here reads each row of numbers as a text."""

import logging
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pytest
from sklearn.utils import estimator_checks
from support import tiny

from medray import Classifier

WORDS = ("tumour", "fever", "lung", "infection", "carcinoma", "pressure", "therapy", "glucose")
NUMBERS = "a text has no numbers to refuse"
FEATURES = "a text has no number of features"
FAILURES = {
    "check_classifiers_train": "one epoch of a tiny random model learns too little",
    "check_estimator_sparse_array": NUMBERS,
    "check_estimator_sparse_matrix": NUMBERS,
    "check_estimator_sparse_tag": NUMBERS,
    "check_estimators_empty_data_messages": FEATURES,
    "check_estimators_nan_inf": NUMBERS,
    "check_fit2d_predict1d": "one row of numbers is no text",
    "check_n_features_in": FEATURES,
    "check_n_features_in_after_fitting": FEATURES,
}


class OfNumbers(Classifier):
    """Reads a row of numbers as a text with a word per number."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = False, True
        return tags

    def fit(self, X: Any, y: Any) -> "OfNumbers":
        super().fit(texts(X), y)
        return self

    def predict(self, X: Any) -> Any:
        return super().predict(texts(X))

    def predict_proba(self, X: Any) -> Any:
        return super().predict_proba(texts(X))


def texts(X: Any) -> Any:
    rows = np.asarray(X)
    if rows.ndim != 2:
        return X
    return [
        " ".join(f"{WORDS[at % len(WORDS)]} {value:.3f}" for at, value in enumerate(row))
        for row in rows.real.astype(float)
    ]


def results(folder: Path) -> list[dict[str, Any]]:
    """Return the result of every check."""
    estimator = OfNumbers(
        str(tiny.base(folder)),
        epochs=1,
        learning_rate=0.01,
        max_length=64,
        settings={"train.samples_per_step": 8, "model.precision": "fp32"},
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return estimator_checks.check_estimator(
            estimator, expected_failed_checks=FAILURES, on_fail=None
        )


@pytest.mark.slow
def test_every_check_of_scikit_learn_passes_but_for_those_about_numbers(tmp_path: Path) -> None:
    rows = results(tmp_path)
    assert [
        (row["check_name"], row["exception"]) for row in rows if row["status"] == "failed"
    ] == []
    assert {row["check_name"] for row in rows if row["status"] == "xfail"} == set(FAILURES)
    assert sum(row["status"] == "passed" for row in rows) >= 40


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    with TemporaryDirectory() as folder:
        for row in results(Path(folder)):
            reason = row["expected_to_fail_reason"] or row["exception"] or ""
            print(f"{row['check_name']}: {row['status']} {' '.join(str(reason).split())}")
