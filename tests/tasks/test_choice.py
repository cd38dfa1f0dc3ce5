"""What the task promises without a model: tokens, weights, decisions, figures, HTTP."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.metrics import accuracy_score, f1_score
from support import tiny

from medray.data.formats.pubmedqa import read_ground_truth
from medray.errors import ConfigError, DataError
from medray.evaluation.calibration import calibrate
from medray.records import AS_IT_IS, AbstentionRecord
from medray.tasks.base.labels import first_label
from medray.tasks.base.protocol import restore
from medray.tasks.choice import ChooseRequest, ChooseResponse, Options, Task
from medray.types import DISCLAIMER, Chunk, Example, Prediction, Sampling

LABELS = ("fever", "heart failure", "renal failure")
EOS = 1


class Model:
    """An engine with fixed scores and fixed texts."""

    def __init__(self, scores=None, texts=()):
        self.tokenizer, self.scores, self.texts, self.requests = (
            tiny.tokenizer("llama"),
            scores,
            texts,
            [],
        )

    def score(self, prompts, continuations):
        self.requests.append((prompts, continuations))
        return np.array(self.scores, dtype=np.float32)

    def generate(self, prompts, sampling):
        self.requests.append((prompts, sampling))
        for index, text in enumerate(self.texts):
            yield Chunk(index, text[:3])
            yield Chunk(index, text[3:], "stop")


def task_of(labels=LABELS, **options):
    return Task.fit(Options(name="choice", **{"max_length": 100, **options}), examples_of(labels))


def examples_of(labels, text="the tumour"):
    return [
        Example(f"row{n}", text, (label,), where=f"notes.txt:{n}") for n, label in enumerate(labels)
    ]


def ids_of(text):
    return tuple(tiny.tokenizer("llama")(text)["input_ids"])


# rows


@pytest.mark.document(
    "004",
    "an instruction template around question and answer",
    where="`task.prompt`, `task.answer`",
)
def test_a_row_is_prompt_answer_and_end_of_sequence():
    task = task_of(prompt="study of {text} was", answer=" {label}")
    rows = task.encode(examples_of(["heart failure", "fever"]), tiny.tokenizer("llama"))
    assert [row.tokens for row in rows] == [
        (*ids_of("study of the tumour was heart failure"), EOS),
        (*ids_of("study of the tumour was fever"), EOS),
    ]
    assert [row.target for row in rows] == [(1, 3), (0, 2)]
    (row,) = task.encode([Example("a", "the tumour")], tiny.tokenizer("llama"))
    assert (row.tokens, row.target) == (ids_of("study of the tumour was"), ())


@pytest.mark.parametrize(
    ("keep", "part"), [("start", "tumour cell"), ("end", "lung airway"), ("both", "tumour airway")]
)
@pytest.mark.document("004", "texts are cut at 512 tokens", where="`task.max_length`")
def test_the_text_is_cut_where_the_task_says_and_nothing_else(keep, part):
    task = task_of(prompt="study of {text} was", answer=" {label}", max_length=8, keep=keep)
    text = "tumour cell growth stage nodes lung airway"
    first, second, third = task.encode(examples_of(LABELS, text), tiny.tokenizer("llama"))
    assert second.tokens == (*ids_of(f"study of {part} was heart failure"), EOS)
    assert len(second.tokens) == 8
    assert first.tokens == (
        *ids_of(f"study of {part} was fever"),
        EOS,
    )  # the same prompt whatever the answer
    assert all(row.truncated for row in (first, second, third))
    (short,) = task.encode(examples_of(["fever"], "tumour cell"), tiny.tokenizer("llama"))
    assert not short.truncated


def test_a_prompt_that_leaves_no_room_for_text_is_an_error():
    task = task_of(prompt="study of {text} was", max_length=6)
    with pytest.raises(
        ConfigError,
        match=(
            "max_length: 6 leaves no room for text besides the prompt's 3 tokens and the answer's 3"
        ),
    ):
        task.encode(examples_of(["fever"]), tiny.tokenizer("llama"))


def test_a_text_that_spells_a_special_token_is_text():
    (row,) = task_of(prompt="{text} was").encode(
        examples_of(["fever"], "tumour <|im_end|> cell"), tiny.tokenizer("llama")
    )
    assert row.tokens.count(EOS) == 1
    assert row.tokens[-1] == EOS


def test_labels_that_no_tokens_tell_apart_are_refused():
    with pytest.raises(DataError, match="labels 'zebra' and 'zoster' are the same tokens"):
        task_of(["zebra", "zoster"], positive_label="zebra").encode(
            examples_of(["zebra"]), tiny.tokenizer("llama")
        )
    begins = task_of(["renal", "renal failure"], positive_label="renal", end_of_sequence=False)
    with pytest.raises(ConfigError, match="'renal' is the beginning of 'renal failure'"):
        begins.encode(examples_of(["renal"]), tiny.tokenizer("llama"))
    task = task_of(["renal", "renal failure"], positive_label="renal")
    assert task.encode(examples_of(["renal"]), tiny.tokenizer("llama"))[0].tokens[-1] == EOS


def test_every_answer_token_weighs_what_its_class_does():
    targets = [(0, 2), (1, 3), (1, 3), (1, 3)]
    rows = ["a", "b", "c", "d"]
    assert task_of().loss(targets, rows).weights.tolist() == [2, 3, 3, 3]
    assert task_of(class_weights={"fever": 2.0}).loss(targets, rows).weights.tolist() == [
        4,
        3,
        3,
        3,
    ]
    weights = task_of(class_weights="balanced").loss(targets, rows).weights / [2, 3, 3, 3]
    assert weights[0] == pytest.approx(weights[1:].sum())


# answers


def test_probabilities_are_the_softmax_of_the_scores_in_the_order_of_the_labels():
    (row,) = task_of().predict(Model([[-2.0, -1.0, -4.0]]), examples_of(["fever"]))
    probabilities = np.exp([-2.0, -1.0, -4.0]) / np.exp([-2.0, -1.0, -4.0]).sum()
    assert row.probabilities == pytest.approx(probabilities)
    assert row.labels == ("heart failure",)


def test_length_normalisation_compares_scores_by_their_mean_token():
    plain, mean = (
        task_of(length_normalisation=is_on).predict(
            Model([[-2.0, -2.4, -9.0]]), examples_of(["fever"])
        )[0]
        for is_on in (False, True)
    )
    assert (plain.labels, mean.labels) == (("fever",), ("heart failure",))


def test_prior_correction_subtracts_the_score_without_content():
    model = Model([[-1.0, -2.0, -9.0], [-0.5, -3.0, -9.0]])
    (row,) = task_of(prior_correction=True, prior_text="no", prompt="{text} was").predict(
        model, examples_of(["fever"])
    )
    assert row.labels == ("heart failure",)
    assert model.requests[0][0] == [ids_of("the tumour was"), ids_of("no was")]


@pytest.mark.document(
    "004",
    "the answer is read out of generated text",
    where="`task.decoding: generate`",
    how="where it is set; by default both labels are scored",
)
def test_generated_text_is_read_and_what_names_no_label_is_counted():
    model = Model(texts=["It is Heart  FAILURE.", "renal", "fever, not renal failure"])
    task = task_of(decoding="generate")
    examples = examples_of(["heart failure", "renal failure", "renal failure"])
    predictions = task.predict(model, examples)
    assert [row.labels for row in predictions] == [("heart failure",), (), ("fever",)]
    assert task.decide(predictions) == predictions
    assert model.requests[0][1] == Sampling(max_tokens=3)
    result = task.score(predictions, examples)
    assert result.values["parse_failure_rate"] == pytest.approx(1 / 3)
    assert result.values["accuracy"] == pytest.approx(1 / 3)
    assert result.per_class["renal failure"] == {
        "precision": 0,
        "recall": 0,
        "f1": 0,
        "support": 2,
        "auprc": pytest.approx(2 / 3),
    }
    assert result.confusion == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert not task.results(predictions, examples).predictions[1].any()
    assert (
        "parse_failure_rate" not in task_of().score(predictions, examples).values
    )  # one scorer for both, and nothing to parse


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("No, yes", "no"),
        ("nothing", None),
        ("yes.", "yes"),
        ("type 2 diabetes here", "type 2 diabetes"),
        ("DIABETES", "diabetes"),
        ("", None),
    ],
)
def test_the_first_label_as_whole_words_is_what_a_text_says(text, label):
    assert first_label(text, ("diabetes", "type 2", "type 2 diabetes", "yes", "no")) == (
        () if label is None else (label,)
    )


def test_options_that_cannot_be_are_named():
    for wrong, sentence in [
        ({"prompt": "no place"}, "must hold {text} once"),
        ({"prompt": "{text} {question}"}, "must hold {text} once"),
        ({"prompt": "{text} {long_answer}"}, "states the answer"),
        ({"answer": "yes"}, "must hold {label} once"),
        ({"decoding": "generate", "prior_correction": True}, "generated answers have no scores"),
    ]:
        with pytest.raises(ValidationError) as result:
            Options(name="choice", **wrong)
        assert sentence in str(result.value)
    with pytest.raises(ConfigError, match="positive_label is missing"):
        task_of(["yes", "no"])
    with pytest.raises(ConfigError, match=r"task\.metric: 'f1'"):
        task_of(metric="f1")
    with pytest.raises(DataError, match="give it exactly one"):
        Task.fit(Options(name="choice"), [Example("a", "b", ("c", "d"))])


def test_a_task_comes_back_from_its_manifest_and_through_a_pickle():
    task = task_of(prompt="Q {text}", class_weights="balanced")
    assert (
        restore(task.options.model_dump(mode="json"), json.loads(json.dumps(task.state()))) == task
    )
    assert pickle.loads(pickle.dumps(task)) == task


def test_the_official_pubmedqa_figures_come_out_of_its_own_files(tmp_path: Path):
    """As its evaluation.py has it: accuracy_score and f1_score(average='macro') over the ids of the
    ground truth."""
    rng = np.random.default_rng(0)
    names = np.array(["yes", "no", "maybe"])
    truth = {
        str(pmid): str(answer)
        for pmid, answer in enumerate(rng.choice(names, 500, p=[0.55, 0.34, 0.11]))
    }
    texts = {
        pmid: str(rng.choice(names)) if rng.random() < 0.4 else answer
        for pmid, answer in truth.items()
    }
    (tmp_path / "test_ground_truth.json").write_text(json.dumps(truth))
    read = read_ground_truth(str(tmp_path / "test_ground_truth.json"))
    for answers in (texts, dict.fromkeys(truth, "yes")):  # and with a label that is never predicted
        task = task_of(("maybe", "no", "yes"))
        examples = [Example(pmid, "q", (answer,)) for pmid, answer in read.items()]
        rows = [
            Prediction(
                pmid,
                (answers[pmid],),
                tuple(float(label == answers[pmid]) for label in task.labels),
            )
            for pmid in read
        ]
        result = task.score(rows, examples).values
        ids = list(truth)
        assert result["accuracy"] == pytest.approx(
            accuracy_score([truth[i] for i in ids], [answers[i] for i in ids])
        )
        assert result["f1_macro"] == pytest.approx(
            f1_score([truth[i] for i in ids], [answers[i] for i in ids], average="macro")
        )


# HTTP


def test_a_response_ranks_every_label_and_carries_the_disclaimer():
    task = task_of()
    answers = task.respond(
        calibrate(task, AS_IT_IS, task.decide([Prediction("a", (), (0.1, 0.7, 0.2))]))
    )
    assert ChooseResponse(release="triage", version=2, predictions=answers).model_dump(
        mode="json"
    ) == {
        "notes": [],
        "release": "triage",
        "version": 2,
        "predictions": [
            {
                "label": "heart failure",
                "labels": ["heart failure"],
                "confidence": 0.7,
                "abstained": False,
                "ranked": ["heart failure", "renal failure", "fever"],
                "probabilities": {"fever": 0.1, "heart failure": 0.7, "renal failure": 0.2},
                "citations": None,
            }
        ],
        "disclaimer": DISCLAIMER,
    }
    rule = AbstentionRecord(precision=0.9, level=0.8, threshold=0.5, coverage=0.5)
    silent = calibrate(
        task,
        AS_IT_IS.model_copy(update={"temperature": 2.0, "abstention": rule}),
        [Prediction("a", (), (0.0, 0.0, 0.0))],
    )
    (nothing,) = task.respond(silent)
    assert (nothing.label, nothing.confidence, nothing.abstained) == (None, 0.0, True)
    assert [row.text for row in ChooseRequest(inputs=("a", "b")).examples()] == ["a", "b"]
