import json
import pickle
import zlib
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError

from medray import types
from medray.errors import ConfigError, DataError
from medray.evaluation import metrics
from medray.evaluation.calibration import calibrate
from medray.records import AS_IT_IS
from medray.tasks.base import protocol
from medray.tasks.classification import ClassifyRequest, ClassifyResponse, Options, Task
from medray.types import Example


def task_of(labels=("cancer", "heart", "skin"), **options):
    return Task.fit(Options(name="classification", **options), examples_of(labels))


def examples_of(labels, text="some text"):
    """One example per label or tuple of labels."""
    each = [(label,) if isinstance(label, str) else label for label in labels]
    return [Example(f"row{n}", text, row, where=f"notes.txt:{n}") for n, row in enumerate(each)]


def predictions_of(task, probabilities):
    return task.decide(
        [types.Prediction(f"row{n}", (), tuple(row)) for n, row in enumerate(probabilities)]
    )


@dataclass(frozen=True)
class Encoding:
    """The tokens of a text, of which the first and the last are special."""

    ids: list[int]

    def __len__(self):
        return len(self.ids)

    @property
    def special_tokens_mask(self):
        return [1, *[0] * (len(self.ids) - 2), 1]


class Words:
    """A tokenizer of whole words between two special tokens."""

    model_max_length = 10**30
    truncation = padding = None
    encode_special_tokens = True

    @property
    def backend_tokenizer(self):
        return self

    def encode_batch_fast(self, texts):
        return [
            Encoding([1, *(zlib.crc32(word.encode()) % 1000 for word in text.split()), 2])
            for text in texts
        ]


class Engine:
    """A model that looks up a vector for each token and adds them."""

    tokenizer = Words()

    def __init__(self, num_labels=3):
        self.table = np.random.default_rng(0).normal(size=(1000, num_labels)).astype(np.float32)
        self.inputs = []

    def logits(self, inputs):
        self.inputs += inputs
        return np.stack([self.table[list(tokens)].mean(axis=0) * 5 for tokens in inputs])


# What the data decides


def test_labels_are_sorted_over_all_examples_and_are_the_head():
    assert task_of(["skin", "cancer", "heart", "skin"]).head() == types.Head(
        ("cancer", "heart", "skin")
    )
    multi = task_of([("b", "a"), (), ("c",)], multi_label=True)
    assert multi.head() == types.Head(("a", "b", "c"), multi_label=True)


def test_two_labels_need_the_positive_one_named():
    with pytest.raises(ConfigError, match="two labels; set it to 'no' or 'yes'"):
        task_of(["yes", "no"])
    with pytest.raises(ConfigError, match=r"'yess' is not a label; .*did you mean 'yes'"):
        task_of(["yes", "no"], positive_label="yess")
    assert task_of(["yes", "no"], positive_label="yes").labels == ("no", "yes")
    assert task_of(["yes", "no"], multi_label=True).labels == ("no", "yes")


@pytest.mark.parametrize("labels", [("a", "b"), ()])
def test_a_row_without_exactly_one_label_is_named_by_its_line(labels):
    with pytest.raises(
        DataError, match=r"notes\.txt:2: .*exactly one, unless task\.multi_label is true"
    ):
        task_of(["cancer", "heart", labels])


def test_one_label_is_nothing_to_choose_from():
    with pytest.raises(DataError, match=r"2 examples have 1 labels \(cancer\)"):
        task_of(["cancer", "cancer"])


def test_the_metric_must_be_a_figure_of_this_task():
    with pytest.raises(ConfigError, match=r"task\.metric: 'f1_makro' .*did you mean 'f1_macro'"):
        task_of(metric="f1_makro")
    with pytest.raises(ConfigError, match="'f1_binary'"):
        task_of(metric="f1_binary")
    assert task_of(["n", "y"], metric="f1_binary", positive_label="y").options.metric == "f1_binary"
    assert task_of(metric="accuracy_subset", multi_label=True)


def test_weights_of_unknown_classes_are_refused():
    with pytest.raises(
        ConfigError, match=r"task\.class_weights: 'hart' is not a label; .*did you mean 'heart'"
    ):
        task_of(class_weights={"hart": 2})


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"multi_label": True, "positive_label": "a"}, ["positive_label", "multi_label"]),
        ({"multi_label": True, "class_weights": "balanced"}, ["class_weights", "multi_label"]),
        ({"long_texts": "windows", "keep": "both"}, ["keep", "long_texts"]),
        ({"long_texts": "windows", "max_length": 64}, ["window_overlap 64", "max_length 64"]),
    ],
)
def test_options_that_exclude_each_other_are_both_named(options, names):
    with pytest.raises(ValidationError) as error:
        Options(name="classification", **options)
    assert all(name in str(error.value) for name in names)


def test_a_task_is_restored_from_json_and_pickles():
    task = protocol.fit(
        Options(name="classification", multi_label=True), examples_of([("a",), ("b", "a")])
    )
    task = task.tune(
        predictions_of(task, [[0.4, 0.1], [0.3, 0.3]]), examples_of([("a",), ("b", "a")])
    )
    options, state = (
        json.loads(json.dumps(part))
        for part in (task.options.model_dump(mode="json"), task.state())
    )
    assert protocol.restore(options, state) == task
    assert pickle.loads(pickle.dumps(task)) == task


# Rows


def test_targets_are_class_positions():
    task = task_of()
    rows = task.encode([*examples_of(["skin", "cancer"]), Example("new", "some text")], Words())
    assert [row.target for row in rows] == [(2,), (0,), ()]
    assert [row.row_id for row in rows] == ["row0", "row1", "new"]
    multi = task_of([("a", "b", "c")], multi_label=True)
    assert [row.target for row in multi.encode(examples_of([("c", "a"), ()]), Words())] == [
        (0, 2),
        (),
    ]
    with pytest.raises(
        DataError,
        match=r"notes\.txt:0: label 'hart' is not a label of the task; .*did you mean 'heart'",
    ):
        task.encode(examples_of(["hart"]), Words())


def test_windows_repeat_row_and_target_and_truncate_nothing():
    task = task_of(long_texts="windows", max_length=6, window_overlap=1)
    long = Example("long", " ".join("abcdefgh"), ("heart",))
    rows = task.encode([long, *examples_of(["skin"])], Words())
    assert [row.row_id for row in rows] == ["long", "long", "long", "row0"]
    assert {row.target for row in rows[:3]} == {(1,)}
    assert not any(row.truncated for row in rows)
    assert task_of(max_length=6).encode([long], Words())[0].truncated


def test_a_text_of_no_tokens_is_refused_where_the_model_would_read_nothing():
    class Bare(Words):
        def encode_batch_fast(self, texts):
            return [Encoding([])]

    with pytest.raises(DataError, match=r"notes\.txt:0: the text has no token"):
        task_of().encode(examples_of(["skin"], text=""), Bare())


# Answers


def test_blanks_around_a_text_its_id_its_label_and_its_neighbours_do_not_change_the_answer():
    task, engine = task_of(), Engine()
    (alone,) = task.predict(engine, [Example("a", "tumour of the lung")])
    others = [
        Example("x", "rash"),
        Example("b", "  tumour of the lung\n", ("skin",)),
        Example("x", "a longer text about a heart"),
    ]
    answered = task.predict(engine, others)
    assert [row.row_id for row in answered] == ["x", "b", "x"]
    assert answered[1].labels == alone.labels
    assert answered[1].probabilities == pytest.approx(alone.probabilities)


def test_another_word_changes_the_answer():
    task, engine = task_of(), Engine()
    engine.table[zlib.crc32(b"tumour") % 1000] = [50, 0, 0]
    engine.table[zlib.crc32(b"eczema") % 1000] = [0, 0, 50]
    first, second = task.predict(
        engine, [Example("a", "tumour of the arm"), Example("b", "eczema of the arm")]
    )
    assert (first.labels, second.labels) == (("cancer",), ("skin",))


def test_probabilities_are_the_softmax_of_the_logits_also_of_huge_ones():
    engine = SimpleNamespace(
        tokenizer=Words(),
        logits=lambda inputs: np.array([[1, 2, 3], [1000, 0, -1000]], dtype=np.float32),
    )
    first, second = task_of().predict(engine, [Example("a", "x"), Example("b", "y")])
    powers = np.exp([1, 2, 3])
    assert first.probabilities == pytest.approx(powers / powers.sum())
    assert second.probabilities == pytest.approx((1, 0, 0))
    assert (first.labels, second.labels) == (("skin",), ("cancer",))


def test_multi_label_probabilities_are_sigmoids_and_any_number_of_labels_is_an_answer():
    task = task_of([("a", "b", "c")], multi_label=True)
    engine = SimpleNamespace(
        tokenizer=Words(),
        logits=lambda inputs: np.array([[1, -1, 0], [-900, -2, -3]], dtype=np.float32),
    )
    first, second = task.predict(engine, [Example("a", "x"), Example("b", "y")])
    assert first.probabilities == pytest.approx(1 / (1 + np.exp([-1, 1, 0])))
    assert (first.labels, second.labels) == (("a", "c"), ())


def test_the_windows_of_a_text_are_averaged_as_logits():
    task, engine = task_of(long_texts="windows", max_length=4, window_overlap=0), Engine()
    (answer,) = task.predict(engine, [Example("a", "one two three four")])
    assert len(engine.inputs) == 2
    logits = np.mean([engine.logits([window])[0] for window in list(engine.inputs)], axis=0)
    assert answer.probabilities == pytest.approx(np.exp(logits) / np.exp(logits).sum(), rel=1e-5)


def test_nothing_to_predict_asks_the_engine_nothing():
    assert task_of().predict(SimpleNamespace(), []) == []


def test_thresholds_are_fitted_for_multi_label_and_then_decide():
    task = task_of([("a", "b")], multi_label=True)
    rows = examples_of([("a",), (), ("a", "b")])
    labels = predictions_of(task, [[0.4, 0.3], [0.2, 0.1], [0.6, 0.9]])
    assert [row.labels for row in labels] == [(), (), ("a", "b")]
    task_with_limits = task.tune(labels, rows)
    assert task_with_limits.thresholds == pytest.approx((0.3, 0.5))
    assert [row.labels for row in task_with_limits.decide(labels)] == [("a",), (), ("a", "b")]
    assert task.thresholds is None
    assert task_of().tune([], []) == task_of()


def test_the_score_is_that_of_the_metrics_over_the_labels_of_the_task():
    task = task_of()
    rows = examples_of(["heart", "cancer", "cancer"])
    probabilities = [[0.2, 0.7, 0.1], [0.6, 0.2, 0.2], [0.1, 0.2, 0.7]]
    result = task.score(predictions_of(task, probabilities), rows)
    assert result == metrics.single_label(
        [1, 0, 0], probabilities, [1, 0, 2], ["cancer", "heart", "skin"], None
    )
    with pytest.raises(DataError, match=r"notes\.txt:0: the row has the labels none"):
        task.score(predictions_of(task, probabilities[:1]), examples_of([()]))


def test_the_score_of_a_binary_task_is_about_the_positive_label():
    task = task_of(["no", "yes"], positive_label="no")
    result = task.score(
        predictions_of(task, [[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]]),
        examples_of(["no", "yes", "yes"]),
    )
    assert result.values["f1_binary"] == pytest.approx(2 / 3)


def test_the_score_of_a_multi_label_task_counts_sets():
    task = task_of([("a", "b")], multi_label=True)
    result = task.score(
        predictions_of(task, [[0.9, 0.1], [0.6, 0.8]]), examples_of([("a",), ("b",)])
    )
    assert (result.values["accuracy_subset"], result.values["f1_micro"]) == pytest.approx(
        (0.5, 0.8)
    )


# HTTP


def test_a_request_has_either_one_text_or_inputs():
    assert [row.text for row in ClassifyRequest(text="a").examples()] == ["a"]
    assert [(row.id, row.text) for row in ClassifyRequest(inputs=("a", "b")).examples()] == [
        ("0", "a"),
        ("1", "b"),
    ]
    for wrong in [{}, {"text": "a", "inputs": ["b"]}, {"inputs": []}, {"text": ""}, {"txt": "a"}]:
        with pytest.raises(ValidationError):
            ClassifyRequest.model_validate(wrong)


def test_a_response_names_the_label_and_every_probability():
    task = task_of()
    answers = task.respond(calibrate(task, AS_IT_IS, predictions_of(task, [[0.2, 0.7, 0.1]])))
    assert ClassifyResponse(release="cancer", version=7, predictions=answers).model_dump(
        mode="json"
    ) == {
        "notes": [],
        "release": "cancer",
        "version": 7,
        "predictions": [
            {
                "label": "heart",
                "labels": ["heart"],
                "confidence": 0.7,
                "abstained": False,
                "probabilities": {"cancer": 0.2, "heart": 0.7, "skin": 0.1},
                "citations": None,
            }
        ],
    }


@pytest.mark.document(
    "001",
    "a classification end point, also of several labels",
    where="`/v1/classify`",
)
def test_a_multi_label_response_is_as_confident_as_its_least_certain_answer():
    task = task_of([("a", "b")], multi_label=True)
    (answer,) = task.respond(calibrate(task, AS_IT_IS, predictions_of(task, [[0.9, 0.4]])))
    assert (answer.label, answer.labels, answer.confidence) == (None, ("a",), pytest.approx(0.6))


def test_class_thresholds_are_fitted_stored_and_applied():
    rng = np.random.default_rng(0)
    truth = rng.choice(3, 300, p=[0.6, 0.2, 0.2])
    logits = rng.normal(0, 1.2, (300, 3)) + 2 * np.eye(3)[truth] + [2.0, 0, 0]  # leans to the first
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    plain = task_of()
    examples = [Example(str(row), "x", (plain.labels[label],)) for row, label in enumerate(truth)]
    predictions = [
        types.Prediction(str(row), (), tuple(values))
        for row, values in enumerate(probabilities.tolist())
    ]
    assert plain.tune(predictions, examples) is plain
    task = task_of(class_thresholds=True)
    task_with_limits = task.tune(predictions, examples)
    f1 = [
        task.score(task.decide(predictions), examples).values["f1_macro"]
        for task in (plain, task_with_limits)
    ]
    assert f1[1] > f1[0] + 0.03
    again = type(task_with_limits).restore(
        task_with_limits.options, json.loads(json.dumps(task_with_limits.state()))
    )
    assert again.decide(predictions) == task_with_limits.decide(predictions)
    with pytest.raises(ValidationError, match="a multi-label task always has a threshold"):
        task_of([("a", "b")], multi_label=True, class_thresholds=True)
