import numpy as np
import pytest
from sklearn import metrics as reference

from medray.errors import ConfigError, DataError
from medray.evaluation import metrics

pytestmark = pytest.mark.filterwarnings("error")  # none of scikit-learn's may escape

ABC = ["a", "b", "c"]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def softmax(logits):
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True)


def draw(rng, rows=200, classes=4):
    probabilities = softmax(rng.normal(size=(rows, classes)))
    truth = np.where(
        rng.random(rows) < 0.5, probabilities.argmax(axis=1), rng.integers(classes, size=rows)
    )
    return truth, probabilities, probabilities.argmax(axis=1)


@pytest.mark.document(
    "002",
    "accuracy, macro F1 and a report of each class",
    where="`metrics.json`",
)
def test_three_classes_counted_by_hand():
    # a: 1 of 2 found, 1 chosen; b: 1 of 1 found, 2 chosen; c: 1 of 1 found, 1 chosen.
    probabilities = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    result = metrics.single_label([0, 0, 1, 2], probabilities, [0, 1, 1, 2], ABC, positive=None)
    assert result.values == pytest.approx(
        {
            "accuracy": 3 / 4,
            "f1_macro": (2 / 3 + 2 / 3 + 1) / 3,
            "f1_micro": 3 / 4,
            "f1_weighted": (2 * 2 / 3 + 2 / 3 + 1) / 4,
            "precision_macro": (1 + 1 / 2 + 1) / 3,
            "recall_macro": (1 / 2 + 1 + 1) / 3,
            "auprc_macro": 1.0,  # every class ranks its own rows first
            "log_loss": -np.log([0.8, 0.3, 0.7, 0.8]).mean(),
        }
    )
    assert result.confusion == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert result.per_class["a"] == pytest.approx(
        {"precision": 1, "recall": 1 / 2, "f1": 2 / 3, "support": 2, "auprc": 1}
    )
    assert (result.num_rows, result.labels) == (4, ABC)


def test_two_classes_are_judged_by_the_positive_one():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    truth, predictions = [0, 1, 1, 0], [0, 1, 0, 1]
    sick = metrics.single_label(
        truth, probabilities, predictions, ["healthy", "sick"], "sick"
    ).values
    assert (sick["f1_binary"], sick["precision_binary"], sick["recall_binary"]) == (0.5, 0.5, 0.5)
    assert sick["auprc_binary"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)  # hits at rank 1 and 3
    healthy = metrics.single_label(
        [0, 0, 0, 1], probabilities, [0, 0, 0, 0], ["healthy", "sick"], "healthy"
    ).values
    assert healthy["f1_binary"] == pytest.approx(6 / 7)


def test_two_labels_need_a_positive_one_and_it_must_be_one_of_them():
    rows = ([0, 1], np.array([[1.0, 0], [0, 1]]), [0, 1])
    with pytest.raises(ConfigError, match="two labels; set it to 'healthy' or 'sick'"):
        metrics.single_label(*rows, ["healthy", "sick"], None)
    with pytest.raises(ConfigError, match=r"'sik' is not a label; .*did you mean 'sick'\?"):
        metrics.single_label(*rows, ["healthy", "sick"], "sik")
    with pytest.raises(ConfigError, match="'a' needs exactly two labels, and there are 3"):
        metrics.check_positive(ABC, "a")


@pytest.mark.document("001", "accuracy, confusion matrix and F1", where="`metrics.json`")
@pytest.mark.document(
    "000",
    "confusion matrix, accuracy, precision, recall and F1",
    where="`medray evaluate --json`, `report.html`",
)
def test_single_label_figures_are_those_of_scikit_learn(rng):
    truth, probabilities, predictions = draw(rng)
    result = metrics.single_label(truth, probabilities, predictions, list("wxyz"), None)
    assert result.confusion == reference.confusion_matrix(truth, predictions).tolist()
    values = result.values
    for average in ("macro", "micro", "weighted"):
        assert values[f"f1_{average}"] == pytest.approx(
            reference.f1_score(truth, predictions, average=average)
        )
    assert values["precision_macro"] == pytest.approx(
        reference.precision_score(truth, predictions, average="macro")
    )
    assert values["recall_macro"] == pytest.approx(
        reference.recall_score(truth, predictions, average="macro")
    )
    assert values["accuracy"] == pytest.approx(reference.accuracy_score(truth, predictions))
    assert values["log_loss"] == pytest.approx(reference.log_loss(truth, probabilities))
    assert values["auprc_macro"] == pytest.approx(
        reference.average_precision_score(np.eye(4)[truth], probabilities, average="macro")
    )


def test_multi_label_figures_are_those_of_scikit_learn(rng):
    probabilities = rng.random((200, 4))
    truth = (rng.random((200, 4)) < probabilities).astype(int)
    truth[:, 0] |= 1 - truth.any(
        axis=1
    )  # scikit-learn counts a row without labels as a mistake; ours has its own test
    predictions = (probabilities >= 0.5).astype(int)
    values = metrics.multi_label(truth, probabilities, predictions, list("wxyz")).values
    for average in ("macro", "micro", "weighted", "samples"):
        assert values[f"f1_{average}"] == pytest.approx(
            reference.f1_score(truth, predictions, average=average, zero_division=0)
        )
    assert values["accuracy_subset"] == pytest.approx(reference.accuracy_score(truth, predictions))
    assert values["precision_macro"] == pytest.approx(
        reference.precision_score(truth, predictions, average="macro")
    )
    assert values["recall_macro"] == pytest.approx(
        reference.recall_score(truth, predictions, average="macro")
    )
    assert values["auprc_macro"] == pytest.approx(
        reference.average_precision_score(truth, probabilities, average="macro")
    )
    columns = [reference.log_loss(truth[:, label], probabilities[:, label]) for label in range(4)]
    assert values["log_loss"] == pytest.approx(np.mean(columns))


def test_labels_that_do_not_occur_are_left_out_of_the_macro_averages(rng):
    truth, probabilities, predictions = draw(rng, classes=3)
    wide = np.hstack([probabilities, np.zeros((200, 2))])
    without = metrics.single_label(truth, probabilities, predictions, ABC, None)
    result = metrics.single_label(truth, wide, predictions, [*ABC, "d", "e"], None)
    assert result.values == pytest.approx(without.values)
    assert result.per_class["d"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}
    assert np.shape(result.confusion) == (5, 5)


def test_a_label_that_is_only_predicted_counts_as_zero_in_the_macro_average_but_has_no_auprc():
    probabilities = np.array([[0.9, 0.1, 0], [0.1, 0.2, 0.7]])
    result = metrics.single_label([0, 0], probabilities, [0, 2], ABC, None)
    assert result.values["f1_macro"] == pytest.approx((2 / 3 + 0) / 2)
    assert result.values["auprc_macro"] == 1.0
    assert "auprc" not in result.per_class["c"]


def test_a_positive_label_without_rows_gives_zeros():
    result = metrics.single_label(
        [0, 0], np.array([[0.9, 0.1], [0.4, 0.6]]), [0, 1], ["n", "p"], "p"
    ).values
    assert (result["f1_binary"], result["auprc_binary"], result["recall_binary"]) == (0, 0, 0)


def test_a_row_that_has_no_label_and_was_given_none_is_right():
    result = metrics.multi_label(
        [[0, 0], [1, 0], [0, 0]], np.full((3, 2), 0.4), [[0, 0], [1, 0], [0, 1]], ["a", "b"]
    ).values
    assert result["f1_samples"] == pytest.approx(2 / 3)
    assert result["accuracy_subset"] == pytest.approx(2 / 3)


def test_one_label_alone_and_no_positives_at_all_are_scored():
    result = metrics.multi_label([[0], [1]], [[0.1], [0.8]], [[0], [1]], ["a"])
    assert result.values["f1_macro"] == 1.0
    assert result.per_class["a"]["support"] == 1
    nothing = metrics.multi_label([[0], [0]], [[0.1], [0.2]], [[0], [0]], ["a"]).values
    assert (
        nothing["f1_macro"],
        nothing["f1_micro"],
        nothing["auprc_macro"],
        nothing["accuracy_subset"],
    ) == (0, 0, 0, 1)


def test_a_certain_mistake_costs_much_and_not_infinity():
    result = metrics.single_label([0], np.array([[0.0, 1.0, 0.0]]), [1], ABC, None).values
    assert result["log_loss"] == pytest.approx(-np.log(np.finfo(float).eps))


@pytest.mark.parametrize(
    ("multi_label", "binary"), [(False, False), (False, True), (True, False), (True, True)]
)
def test_the_names_are_those_of_the_values(multi_label, binary):
    labels = ["a", "b"] if binary else ABC
    truth = np.eye(len(labels), dtype=int)
    if multi_label:
        result = metrics.multi_label(truth, truth, truth, labels)
    else:
        result = metrics.single_label(
            range(len(labels)), truth, range(len(labels)), labels, "a" if binary else None
        )
    assert list(result.values) == metrics.names(multi_label, binary)
    assert all(type(value) is float for value in result.values.values())


def test_only_log_loss_is_better_when_lower():
    names = {*metrics.names(False, True), *metrics.names(True, False)}
    assert {name for name in names if not metrics.higher_is_better(name)} == {"log_loss"}


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        (np.zeros((0, 3)), "no rows"),
        ([[0.5, 0.5]], r"shape \(1, 2\); expected 1 rows of 3 labels"),
        ([[np.nan, 0, 1]], "1 of 1 rows have a probability that is not a finite number"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused(probabilities, message):
    rows = [0] * len(probabilities)
    with pytest.raises(DataError, match=message):
        metrics.single_label(rows, probabilities, rows, ABC, None)


def test_thresholds_reach_the_best_f1_that_any_threshold_reaches(rng):
    for _ in range(20):
        scores = rng.random((30, 3)).round(1)  # rounded: many ties
        truth = (rng.random((30, 3)) < scores * 0.6).astype(int)
        truth[0] = 1
        for label, threshold in enumerate(metrics.thresholds(truth, scores)):
            value = f1(truth[:, label], scores[:, label] >= threshold)
            assert value == max(
                f1(truth[:, label], scores[:, label] >= step) for step in np.linspace(0, 1.05, 211)
            )


def test_thresholds_take_the_nearest_to_a_half_of_the_equally_good():
    assert metrics.thresholds([[1], [0]], [[0.9], [0.2]]) == [0.5]
    assert metrics.thresholds([[1], [0]], [[0.4], [0.2]]) == pytest.approx([0.3])
    assert metrics.thresholds([[1], [0]], [[0.9], [0.7]]) == pytest.approx([0.8])
    # The first row alone gives 2/3, and so do all four; 0.5 takes the first alone.
    assert metrics.thresholds([[1], [0], [0], [1]], [[0.9], [0.3], [0.2], [0.1]]) == [0.5]


def test_a_label_without_positives_keeps_a_half():
    assert metrics.thresholds([[0, 1], [0, 1]], [[0.9, 0.1], [0.1, 0.3]]) == pytest.approx(
        [0.5, 0.05]
    )


def test_a_threshold_between_neighbouring_numbers_still_separates_them():
    low = 0.25
    high = np.nextafter(low, 1)
    (threshold,) = metrics.thresholds([[1], [0]], [[high], [low]])
    assert high >= threshold > low


def f1(truth, predictions):
    return 2 * (truth & predictions).sum() / (truth.sum() + predictions.sum())
