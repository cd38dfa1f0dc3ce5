"""The interface of scikit-learn."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.utils import estimator_checks
from support import tiny

from medray import Classifier
from medray.errors import ConfigError, DataError

SETTINGS = {"train.samples_per_step": 8, "model.precision": "fp32", "train.token_budget": 512}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.base(tmp_path_factory.mktemp("base")))


def make(base: str, **changes: Any) -> Classifier:
    options = {"epochs": 2, "learning_rate": 0.01, "max_length": 64, "settings": SETTINGS}
    return Classifier(base, **options | changes)


@pytest.fixture(scope="module")
def model(base: str, table: dict[str, list[str]]) -> Classifier:
    return make(base, epochs=8).fit(table["abstract"], table["condition"])


def test_a_fitted_classifier_predicts_classes_and_probabilities(
    model: Classifier, table: dict[str, list[str]]
) -> None:
    texts, classes = table["abstract"], table["condition"]
    assert model.classes_.tolist() == ["cancer", "other"]
    assert model.score(texts, classes) > 0.9
    probabilities = model.predict_proba(texts)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert (model.classes_[probabilities.argmax(axis=1)] == model.predict(texts)).all()


def test_classes_are_those_of_y_whatever_their_type(base: str, table: dict[str, list[str]]) -> None:
    numbers = np.array([10 if label == "cancer" else 9 for label in table["condition"]])
    model = make(base, epochs=8).fit(np.array(table["abstract"], dtype=object), numbers)
    assert model.classes_.tolist() == [9, 10]
    assert model.score(table["abstract"], numbers) > 0.9
    assert (model.predict_proba(table["abstract"]).argmax(axis=1) == (numbers == 10)).mean() > 0.9


def test_a_pickle_predicts_the_same(model: Classifier, table: dict[str, list[str]]) -> None:
    other = pickle.loads(pickle.dumps(model))
    texts = table["abstract"][:5]
    assert np.allclose(other.predict_proba(texts), model.predict_proba(texts), atol=1e-6)


def test_equal_seeds_give_equal_models(base: str, table: dict[str, list[str]]) -> None:
    texts, classes = table["abstract"], table["condition"]
    first, second = (clone(make(base, epochs=1)).fit(texts, classes) for _ in range(2))
    assert np.array_equal(first.predict_proba(texts), second.predict_proba(texts))


def test_it_works_in_cross_validation_and_in_calibration(
    base: str, table: dict[str, list[str]]
) -> None:
    texts, classes = np.array(table["abstract"]), np.array(table["condition"])
    scores = cross_val_score(make(base, epochs=1), texts, classes, cv=2)
    assert len(scores) == 2
    calibrated = CalibratedClassifierCV(make(base, epochs=1), cv=2, method="temperature")
    assert calibrated.fit(texts, classes).predict_proba(texts[:3]).shape == (3, 2)


# These need no training; test_scikit_learn.py has all of scikit-learn's checks.
CHECKS = (
    estimator_checks.check_estimator_cloneable,
    estimator_checks.check_estimator_repr,
    estimator_checks.check_estimator_tags_renamed,
    estimator_checks.check_get_params_invariance,
    estimator_checks.check_mixin_order,
    estimator_checks.check_no_attributes_set_in_init,
    estimator_checks.check_parameters_default_constructible,
    estimator_checks.check_set_params,
    estimator_checks.check_valid_tag_types,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_checks_of_scikit_learn_that_need_no_numbers_pass(check: Any) -> None:
    check("Classifier", Classifier())


def test_the_checks_that_scikit_learn_chooses_for_texts_pass() -> None:
    with pytest.warns(match="Can't test estimator Classifier which requires input"):
        checks = list(estimator_checks.estimator_checks_generator(Classifier()))
    assert checks
    for estimator, check in checks:
        check(estimator)


def test_wrong_input_is_named(model: Classifier, base: str) -> None:
    with pytest.raises(NotFittedError):
        make(base).predict(["text"])
    with pytest.raises(DataError, match="a list of texts is expected"):
        model.predict("one text")
    with pytest.raises(DataError, match="X: row 1 is of type int"):
        model.predict(["a", 1])
    with pytest.raises(DataError, match="X: has no texts"):
        make(base).fit([], [])
    with pytest.raises(DataError, match="X: row 1 holds half of a surrogate pair"):
        model.predict(["a", "\ud800"])
    for missing in (None, float("nan"), pd.NA):
        with pytest.raises(DataError, match=r"y: has values of several types, .*str; give one"):
            make(base).fit(["a", "b", "c"], pd.Series(["x", "y", missing], dtype=object))
    with pytest.raises(ConfigError, match="validation_fraction 0 is no share; give a number"):
        make(base, validation_fraction=0).fit(["a", "b"], ["x", "y"])
    for settings, message in (
        ({"validation_fraction": None}, "validation_fraction None is no share"),
        ({"random_state": "x"}, "Classifier: random_state: 'x' cannot be used to seed"),
        ({"random_state": -1}, "Classifier: random_state: Seed must be between 0"),
        ({"settings": "lora.r"}, "Classifier: settings 'lora.r': give a mapping by dotted names"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(base, **settings).fit(["a", "b"], ["x", "y"])
    with pytest.raises(ConfigError, match=r"source: .*holds half of a surrogate pair"):
        Classifier("\ud800").fit(["a", "b"], ["x", "y"])
    with pytest.raises(DataError, match="X: is a dict, and a list of texts is expected"):
        model.predict({"text": ["a", "b"]})
    with pytest.raises(DataError, match="y: a class holds half of a surrogate pair"):
        make(base).fit(["a", "b"], ["x", "\ud800"])
    with pytest.raises(DataError, match="y: Unknown label type: continuous"):
        make(base).fit(["a", "b"], [0.1, 0.2])
    with pytest.raises(DataError, match="y: y should be a 1d array"):
        make(base).fit(["a", "b"], None)
    with pytest.raises(DataError, match="give one class for each of 2 texts"):
        make(base).fit(["a", "b"], ["x"])
    with pytest.raises(DataError, match="all texts have one class, 'x'"):
        make(base).fit(["a", "b"], ["x", "x"])
    with pytest.raises(DataError, match="has 1 different texts; give at least 5"):
        make(base).fit(["same"] * 6, ["x", "y"] * 3)


def test_a_fit_that_fails_leaves_the_model_as_it_was(
    model: Classifier, table: dict[str, list[str]]
) -> None:
    other = pickle.loads(pickle.dumps(model))
    with pytest.raises(DataError, match="has 3 different texts"):
        other.fit(["a text", "another one", "nothing"], ["x", "y", "z"])
    texts = table["abstract"][:5]
    assert other.predict(texts).tolist() == model.predict(texts).tolist()


def test_duplicates_of_texts_that_choose_do_not_train(base: str, tmp_path: Path) -> None:
    from medray.python.classifier import _dataset

    texts = [
        f"text {number // 2} about something else entirely {number // 2}" for number in range(40)
    ]
    codes = [number // 2 % 2 for number in range(40)]
    from medray.types import Example

    rows = [Example(str(at), text, (str(codes[at]),)) for at, text in enumerate(texts)]
    study = make(base)._study(0, ["0", "1"])
    dataset = _dataset(rows, codes, 0.2, study, 0)
    train, validation = ({row.text for row in side} for side in (dataset.train, dataset.validation))
    assert train.isdisjoint(validation)
    assert validation
