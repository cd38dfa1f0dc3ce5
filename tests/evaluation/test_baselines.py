"""What a model has to beat."""

from collections.abc import Sequence

import numpy as np
import pytest

from medray.evaluation import baselines
from medray.evaluation.baselines import Baseline, TrainingRows, ValidationRows
from medray.types import Floats


def one_hot(classes: list[int], num: int = 2) -> np.ndarray:
    return np.eye(num, dtype=bool)[classes]


def no_choice(probabilities: Floats) -> float:
    return 0.0


def tfidf(
    texts: list[str], truth: np.ndarray, *, multi_label: bool = False, value=no_choice
) -> Baseline | None:
    rows = TrainingRows(texts, truth, multi_label)
    return baselines.tfidf(rows, ValidationRows(texts[:4], value))


def test_majority_gives_everyone_the_most_frequent_answer() -> None:
    baseline = baselines.majority(one_hot([0, 1, 1, 1]), multi_label=False)
    assert baseline.is_constant
    assert baseline.probabilities(["a", "b"]).tolist() == [[0.25, 0.75]] * 2
    sets = baselines.majority(
        np.array([[1, 0, 1], [1, 0, 1], [0, 1, 0]], dtype=bool), multi_label=True
    )
    assert sets.probabilities(["a"]).tolist() == [[1, 0, 1]]


def test_texts_without_words_leave_the_regression_out_and_say_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert tfidf(["a", "b"] * 5, one_hot([0, 1] * 5)) is None
    assert "is left out" in caplog.text


def test_words_that_tell_are_learned() -> None:
    texts = [
        "carcinoma of the lung",
        "the heart failed",
        "lung carcinoma again",
        "a failing heart",
    ] * 5
    baseline = tfidf(texts, one_hot([0, 1, 0, 1] * 5))
    assert baseline is not None
    probabilities = baseline.probabilities(["some carcinoma", "her heart"])
    assert probabilities.argmax(axis=1).tolist() == [0, 1]
    assert probabilities.sum(axis=1) == pytest.approx([1, 1])


def test_validation_rows_choose_class_weights_where_one_class_is_rare() -> None:
    texts = ["carcinoma of the lung"] * 6 + ["an aching lung"] * 34
    truth = one_hot([0] * 2 + [1] * 38)

    def recall_of_the_rare_class(probabilities: Floats) -> float:
        return float((probabilities[:2, 0] > 0.5).mean())

    plain = tfidf(texts, truth)
    assert plain is not None
    assert plain.settings == {"features": "words", "C": 0.3, "class_weight": None}
    assert plain.probabilities(["carcinoma of the lung"])[0, 0] < 0.5
    rare = tfidf(texts, truth, value=recall_of_the_rare_class)
    assert rare is not None
    assert rare.settings["class_weight"] == "balanced"
    assert rare.probabilities(["carcinoma of the lung"])[0, 0] > 0.5


def test_validation_rows_choose_pairs_of_words_where_the_order_tells() -> None:
    texts = ["fever then cough", "cough then fever"] * 10
    truth = one_hot([0, 1] * 10)

    def accuracy(probabilities: Floats) -> float:
        return float((probabilities.argmax(axis=1) == [0, 1, 0, 1]).mean())

    baseline = tfidf(texts, truth, value=accuracy)
    assert baseline is not None
    assert baseline.settings["features"] == "words and pairs"


def test_a_label_without_training_rows_keeps_its_column() -> None:
    texts = ["carcinoma of the lung", "the heart failed"] * 5
    baseline = tfidf(texts, one_hot([0, 2] * 5, num=3))
    assert baseline is not None
    assert baseline.probabilities(["heart"]).shape == (1, 3)
    assert baseline.probabilities(["heart"])[0, 1] == 0


def test_labels_of_a_multi_label_task_are_learned_apart() -> None:
    truth = np.array([[1, 0], [0, 1], [1, 1], [0, 0]] * 5, dtype=bool)
    texts = ["fever", "cough", "fever and cough", "nothing"] * 5

    def subset_accuracy(probabilities: Floats) -> float:
        return float(((probabilities > 0.5) == truth[:4]).all(axis=1).mean())

    one = tfidf(texts, truth[:, :1], multi_label=True, value=lambda rows: -abs(rows[0, 0] - 0.9))
    assert one is not None
    assert (one.probabilities(["fever", "cough"])[:, 0] > 0.5).tolist() == [True, False]
    baseline = tfidf(texts, truth, multi_label=True, value=subset_accuracy)
    assert baseline is not None
    assert (baseline.probabilities(["fever and cough", "nothing"]) > 0.5).tolist() == [
        [True, True],
        [False, False],
    ]


class Lengths:
    """The length of a text; it remembers how many texts it was fitted on."""

    num_fitted = 0

    def fit_transform(self, texts: Sequence[str]) -> np.ndarray:
        self.num_fitted = len(texts)
        return self.transform(texts)

    def transform(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[len(text)] for text in texts], dtype=float)


def test_many_rows_are_sampled_and_the_name_says_so() -> None:
    rows = TrainingRows(["no", "heart failure"] * 20, one_hot([0, 1] * 20), multi_label=False)
    lengths = Lengths()
    baseline = baselines.search(
        "lengths", {"length": lengths}, rows, ValidationRows(["no"], no_choice), most=10
    )
    assert lengths.num_fitted == 10
    assert baseline.name == "lengths (fitted on 10 of 40 rows)"


def test_a_search_on_a_sample_ends_with_a_fit_on_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "SEARCH_ROWS", 10)
    rows = TrainingRows(["no", "heart failure"] * 20, one_hot([0, 1] * 20), multi_label=False)
    lengths = Lengths()
    baseline = baselines.search(
        "lengths", {"length": lengths}, rows, ValidationRows(["no"], no_choice)
    )
    assert lengths.num_fitted == 40
    assert baseline.settings["features"] == "length"
    assert baseline.probabilities(["ah", "an aching heart"]).argmax(axis=1).tolist() == [0, 1]
