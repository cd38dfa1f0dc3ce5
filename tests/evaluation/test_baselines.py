"""What a model has to beat."""

import numpy as np
import pytest

from medray.evaluation import baselines


def one_hot(classes: list[int], num: int = 2) -> np.ndarray:
    return np.eye(num, dtype=bool)[classes]


def test_majority_gives_everyone_the_most_frequent_answer() -> None:
    baseline = baselines.majority(one_hot([0, 1, 1, 1]), multi_label=False)
    assert baseline.probabilities(["a", "b"]).tolist() == [[0.25, 0.75]] * 2
    sets = baselines.majority(
        np.array([[1, 0, 1], [1, 0, 1], [0, 1, 0]], dtype=bool), multi_label=True
    )
    assert sets.probabilities(["a"]).tolist() == [[1, 0, 1]]


def test_texts_without_words_leave_the_regression_out_and_say_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert baselines.tfidf(["a", "b"] * 5, one_hot([0, 1] * 5), multi_label=False) is None
    assert "is left out" in caplog.text


def test_words_that_tell_are_learned() -> None:
    texts = [
        "carcinoma of the lung",
        "the heart failed",
        "lung carcinoma again",
        "a failing heart",
    ] * 5
    baseline = baselines.tfidf(texts, one_hot([0, 1, 0, 1] * 5), multi_label=False)
    assert baseline is not None
    probabilities = baseline.probabilities(["some carcinoma", "her heart"])
    assert probabilities.argmax(axis=1).tolist() == [0, 1]
    assert probabilities.sum(axis=1) == pytest.approx([1, 1])


def test_a_label_without_training_rows_keeps_its_column() -> None:
    texts = ["carcinoma of the lung", "the heart failed"] * 5
    baseline = baselines.tfidf(texts, one_hot([0, 2] * 5, num=3), multi_label=False)
    assert baseline is not None
    assert baseline.probabilities(["heart"]).shape == (1, 3)
    assert baseline.probabilities(["heart"])[0, 1] == 0


def test_labels_of_a_multi_label_task_are_learned_apart() -> None:
    truth = np.array([[1, 0], [0, 1], [1, 1], [0, 0]] * 5, dtype=bool)
    texts = ["fever", "cough", "fever and cough", "nothing"] * 5
    one = baselines.tfidf(texts, truth[:, :1], multi_label=True)
    assert one is not None
    assert (one.probabilities(["fever", "cough"])[:, 0] > 0.5).tolist() == [True, False]
    baseline = baselines.tfidf(texts, truth, multi_label=True)
    assert baseline is not None
    assert (baseline.probabilities(["fever and cough", "nothing"]) > 0.5).tolist() == [
        [True, True],
        [False, False],
    ]


def test_many_rows_are_sampled_and_the_name_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MOST_ROWS", 10)
    baseline = baselines.tfidf(["carcinoma", "heart"] * 20, one_hot([0, 1] * 20), multi_label=False)
    assert baseline is not None
    assert baseline.name == "TF-IDF + logistic regression (fitted on 10 of 40 rows)"
