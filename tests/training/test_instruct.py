"""Trains and evaluates answers in words on a tiny model: which tokens have a loss, which texts are
stored, which edits change an answer."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny

from medray.data import dataset
from medray.errors import ConfigError, DataError
from medray.evaluation.bootstrap import interval, value
from medray.registry import loading
from medray.registry.predictions import read_predictions
from medray.tasks.instruct import task as instruct
from medray.tasks.instruct.safety import REFUSAL
from medray.training.loop import MicroBatch
from medray.training.material import audit_tokens
from medray.training.trial import Trial
from medray.training.trial_folder import TrialResult
from medray.types import Example, Message, Prediction


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("instruct")
    tiny.instructions(path, num_rows=120)
    return path


@pytest.fixture(scope="module")
def trial_and_result(folder: Path) -> tuple[Trial, TrialResult]:
    trial = tiny.trial(
        tiny.instruct_study(folder, "train.epochs=12", "task.safety_ratio=0"), folder
    )
    return trial, trial.run()


def test_the_loss_is_of_the_assistants_tokens_alone_as_transformers_has_it(folder: Path) -> None:
    trial = tiny.trial(tiny.instruct_study(folder), folder)
    loop = trial.make_loop()
    batch = MicroBatch(tuple(range(6)))
    trial.model.network.eval()
    with torch.no_grad():
        sums, weights = loop.loss(batch), loop.row_loss.weights
        for number, row in enumerate(batch.rows):
            tokens, target = (
                torch.tensor(trial.rows.tokens(row).astype(np.int64)),
                trial.rows.target(row),
            )
            labels = torch.full_like(tokens, -100)
            for start, end in zip(target[::2], target[1::2], strict=True):
                labels[start:end] = tokens[start:end]
            mean = trial.model.network(input_ids=tokens[None], labels=labels[None]).loss
            assert float(weights[number]) == int((labels != -100).sum())
            assert float(sums[number] / weights[number]) == pytest.approx(float(mean), rel=1e-4)


def test_the_audit_counts_question_and_answer_as_the_rows_are_cut(folder: Path) -> None:
    study = tiny.instruct_study(
        folder, "task.max_length=30", "task.safety_ratio=0", "task.metric=token_f1"
    )
    data = dataset.load(study.data, study.task.bring)
    task, tokenizer = instruct.Task.fit(study.task, data.label_sets()), tiny.tokenizer("llama")
    audit = audit_tokens(data, task, "tiny", tokenizer)
    rows = [*data.train, *data.validation, *data.open_test(folder / "log", "a test").examples]
    encoded = task.encode(rows, tokenizer)
    assert 0 < audit.tokens["tiny"].num_over == sum(row.truncated for row in encoded) < len(rows)
    whole = instruct.Task.fit(study.task.model_copy(update={"max_length": 128}), rows)
    assert audit.tokens["tiny"].longest == max(
        len(row.tokens) for row in whole.encode(rows, tokenizer)
    )


def test_training_makes_words_right(trial_and_result: tuple[Trial, TrialResult]) -> None:
    first, last = trial_and_result[1].history[0].metrics, trial_and_result[1].history[-1].metrics
    own = sum(not row.metadata for row in trial_and_result[0].material.validation)
    safe = sum(
        row.metadata.get("safety") == "safe" for row in trial_and_result[0].material.validation
    )  # in words that it does not know
    assert first["token_f1"] < last["token_f1"] > 0.7 * own / (own + safe)
    assert {"refusal_f1", "rouge_l", "safe_answer_f1", "over_refusal", "perplexity"} <= last.keys()


def test_a_word_that_decides_changes_the_answer_and_one_that_does_not_leaves_it(
    trial_and_result: tuple[Trial, TrialResult],
) -> None:
    release = loading.load(trial_and_result[1].checkpoint)

    def answer(text: str) -> str:
        (prediction,) = release.predict([Example("a", text)])
        return prediction.text

    assert (
        answer("group with infection after 7")
        == answer("infection group with after 9")
        == "the fever"
    )
    assert answer("group with rhythm after 7") != answer("group with infection after 7")


def test_a_checkpoint_keeps_no_text_and_is_scored_the_same_from_what_it_keeps(
    trial_and_result: tuple[Trial, TrialResult],
) -> None:
    trial, result = trial_and_result
    predictions = read_predictions(result.checkpoint)
    assert not any(row.text for row in predictions)
    assert "fever" not in (result.checkpoint / "predictions.jsonl").read_text()
    rows = list(trial.material.validation)
    assert trial.task.score(predictions, rows).values == pytest.approx(result.best.metrics)
    release = loading.load(result.checkpoint)
    assert release.task.score(release.predict(rows), rows).values == pytest.approx(
        result.best.metrics, abs=1e-4
    )
    answers = trial.task.results(predictions, rows)
    assert answers.support("refusal_f1") == sum(
        row.response.startswith("I don't have enough") for row in rows
    )
    estimate = interval(answers, "token_f1")
    assert estimate.low <= value(answers, "token_f1") <= estimate.high


def test_perplexity_is_that_of_a_loss_pass_over_the_answers(
    trial_and_result: tuple[Trial, TrialResult],
) -> None:
    release = loading.load(trial_and_result[1].checkpoint, precision="fp32")
    rows = [row for row in trial_and_result[0].material.validation if not row.metadata][:5]
    perplexity = release.task.score(release.predict(rows), rows).values["perplexity"]
    release.model.network.eval()
    nats, count = 0.0, 0
    for row in release.task.encode(rows, release.model.tokenizer):
        labels = torch.full((len(row.tokens),), -100)
        start, end = row.target[-2:]
        labels[start:end] = torch.tensor(row.tokens[start:end])
        with torch.inference_mode():
            nats += float(
                release.model.network(
                    input_ids=torch.tensor([row.tokens]), labels=labels[None]
                ).loss
            ) * (end - start)
        count += end - start
    assert perplexity == pytest.approx(math.exp(nats / count), rel=1e-4)


def test_safety_rows_of_validation_and_test_never_train(folder: Path) -> None:
    study = tiny.instruct_study(folder, "task.safety_ratio=0.5", "data.evaluation_rows=4")
    data = dataset.load(study.data, study.task.bring)
    plain = dataset.load(study.data)
    assert len(plain.validation) == len(plain.unlabelled_test()) == 4
    safety_rows = [row for row in data.train if row not in plain.train]
    assert len(safety_rows) == math.ceil(0.5 * len(plain.train))
    assert all(data.splits[row.id] == "train" for row in safety_rows)
    validation_rows = [row for row in data.validation if row not in plain.validation]
    assert {row.metadata["safety"] for row in validation_rows} >= {
        "dosage",
        "self_harm",
        "injection",
        "safe",
    }
    assert not {row.text for row in safety_rows} & {
        row.text for row in [*validation_rows, *data.unlabelled_test()]
    }
    assert not any(row.response for row in data.unlabelled_test())
    assert data.fingerprint != plain.fingerprint


def figures(*pairs: tuple[str, str]) -> dict[str, float]:
    """Return the metrics of pairs of prediction and reference."""
    task = instruct.Task.fit(instruct.Options(name="instruct"), [])
    examples = [
        Example(str(number), "-", response=right) for number, (_, right) in enumerate(pairs)
    ]
    return task.score(
        [Prediction(str(number), (), (), text=text) for number, (text, _) in enumerate(pairs)],
        examples,
    ).values


@pytest.mark.document(
    "003",
    "unsafe questions are answered by a fixed refusal",
    where="`medray/tasks/instruct/safety.jsonl`",
    how="it is trained and measured; nothing beside the model enforces it",
)
def test_refusals_and_answers_are_scored_by_the_right_answer() -> None:
    metrics = figures(
        (REFUSAL, REFUSAL),
        ("Take two.", REFUSAL),
        ("the blood", "the blood"),
        (REFUSAL, "the heart"),
    )
    assert metrics["refusal_f1"] == pytest.approx(2 * 1 / (2 + 2))
    assert metrics["token_f1"] == pytest.approx(
        (1 + 0) / 2
    )  # a refusal answers nothing, though it shares words
    assert metrics["over_refusal"] == pytest.approx(1 / 2)
    assert metrics["safe_answer_f1"] == pytest.approx(0.5)
    with pytest.raises(
        DataError, match=r"task.metric safe_answer_f1: none of these 1 rows must be refused"
    ):
        figures(("the blood", "the blood"))


def test_a_decision_at_the_end_is_scored_too() -> None:
    examples = [
        Example("a", "-", ("yes",), response="So.\n\nDecision: yes"),
        Example("b", "-", ("no",), response="So.\n\nDecision: no"),
    ]
    task = instruct.Task.fit(instruct.Options(name="instruct", metric="token_f1"), examples)
    predictions = [
        Prediction("a", (), (), text="There is no doubt. Decision: Yes."),
        Prediction("b", (), (), text="maybe yes"),
    ]
    assert task.score(predictions, examples).values["decision_accuracy"] == 0.5


def test_a_conversation_is_answered_by_its_last_turn(
    trial_and_result: tuple[Trial, TrialResult],
) -> None:
    release = loading.load(trial_and_result[1].checkpoint)
    (answer,) = release.predict(
        [Example("0", "-", turns=(Message("user", "group with infection after 7"),))]
    )
    assert (answer.text, release.task.outcome(answer.text)) == ("the fever", "answered")


def test_options_that_leave_no_room_are_refused(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match="max_new_tokens 128 and max_length 100: no token is left for a prompt"
    ):
        tiny.instruct_study(folder, "task.max_new_tokens=128")


@pytest.mark.document(
    "004",
    "answers with an explanation",
    where="`jobs/studies/pubmedqa_explain.yaml`",
)
def test_questions_are_explained_then_decided_and_the_conclusion_is_never_read(
    tmp_path: Path,
) -> None:
    questions = {
        str(number): {
            "QUESTION": f"fever after surgery {number}?",
            "CONTEXTS": ["blood pressure in patient"],
            "LONG_ANSWER": "insulin therapy",
            "final_decision": ("yes", "no", "maybe")[number % 3],
        }
        for number in range(24)
    }
    (tmp_path / "ori_pqal.json").write_text(json.dumps(questions))
    study = tiny.instruct_study(
        tmp_path,
        f"data.format={{name: pubmedqa, path: {tmp_path / 'ori_pqal.json'}, explain: true}}",
        "train.epochs=1",
    )
    trial = tiny.trial(study, tmp_path)
    tokenizer = trial.model.tokenizer
    for row in range(len(trial.rows)):
        tokens, target = trial.rows.tokens(row).tolist(), trial.rows.target(row)
        prompt, answer = (
            tokenizer.decode(tokens[: target[0]]),
            tokenizer.decode(tokens[target[0] :]),
        )
        assert "insulin" not in prompt
        assert "insulin therapy" in answer or "blood" not in prompt  # but for the safety rows
    assert "decision_accuracy" in trial.run().best.metrics
    assert trial.task.decisions == ("maybe", "no", "yes")
