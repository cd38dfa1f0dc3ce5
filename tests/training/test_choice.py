"""Trains a language model on its answers only: the loss, the logits that it needs, and equal
answers after loading."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny

from medray.engines.transformers import TransformersEngine
from medray.models.batch import answer_places
from medray.registry.loading import load
from medray.training.plan import MicroBatch
from medray.types import Example


@pytest.mark.parametrize("family", tiny.DECODERS)
@pytest.mark.document(
    "002",
    "the loss is of the answer alone, padding is masked",
    where="`medray/tasks/choice.py`",
)
def test_the_loss_is_that_of_the_answer_tokens_and_no_other_logit_is_made(
    tmp_path: Path, family: str
) -> None:
    settings = ("lora.dropout=0", "task.class_weights={fever: 3.0}")
    trial = tiny.trial(tiny.choice_study(tmp_path, *settings, family=family), tmp_path)
    loop, rows = trial.make_loop(), (0, 1, 2, 5, 7)
    num_logits: list[int] = []
    trial.model.network.get_output_embeddings().register_forward_hook(
        lambda module, args, logits: num_logits.append(logits.shape[:-1].numel())
    )
    sums = loop.loss(MicroBatch(rows))
    counts = [trial.rows.target(row)[1] for row in rows]
    assert num_logits == [sum(counts)]
    for place, row in enumerate(rows):
        ids = torch.tensor(trial.rows.tokens(row).astype(np.int64))
        logits = trial.model.network(ids[None]).logits[0]
        labels = ids.clone()
        labels[
            : -counts[place]
        ] = -100  # by position: these tokenizers pad with their end of sequence
        reference = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], reduction="sum")
        weight = 3.0 if trial.task.labels[trial.rows.target(row)[0]] == "fever" else 1.0
        assert float(sums[place].detach()) == pytest.approx(
            weight * float(reference.detach()), rel=1e-4
        )
        assert loop.row_loss.weights[row] == weight * counts[place]


def test_micro_batches_change_no_gradient_of_a_language_model(tmp_path: Path) -> None:
    gradients = []
    for budget in (40, 100_000):
        trial = tiny.trial(
            tiny.choice_study(tmp_path, "lora.dropout=0", f"train.token_budget={budget}"), tmp_path
        )
        trial.loop = trial.make_loop()
        step = trial.loop.steps()[0]
        trial.loop.accumulate(step, step.ranks[0])
        gradients.append(
            {name: parameter.grad.clone() for name, parameter in trial.slot.parameters.items()}
        )
    assert max(float(gradient.abs().max()) for gradient in gradients[0].values()) > 1e-3
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.document(
    "002",
    "OPT reads rows that are padded on the left",
    where="`medray/models/families.py`",
    how="on either side, told by length",
)
def test_answers_are_at_the_end_of_each_row_with_padding_on_either_side() -> None:
    assert answer_places([5, 3], [[(3, 5)], [(2, 3)]], 5, left=False) == ([0, 0, 1], [2, 3, 1])
    assert answer_places([5, 3], [[(3, 5)], [(2, 3)]], 5, left=True) == ([0, 0, 1], [2, 3, 3])


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.document(
    "002",
    "adapter and tokenizer are saved and loaded again",
    where="`medray.load`",
)
def test_a_trained_choice_answers_the_same_reloaded_and_merged(tmp_path: Path, family: str) -> None:
    trial = tiny.trial(
        tiny.choice_study(tmp_path, "train.epochs=8", family=family, num_rows=120), tmp_path
    )
    result = trial.run()
    assert result.history[-1].train_loss < result.history[0].train_loss / 1.5
    release = load(result.checkpoint)  # compares its probe
    examples = trial.material.validation
    lines = [
        line for line in (result.checkpoint / "predictions.jsonl").read_text().splitlines() if line
    ]
    again = release.task.predict(release.engine, examples)
    plain = release.task.predict(load(result.checkpoint).merge().engine, examples)
    assert len(lines) == len(again)
    for first, second in zip(again, plain, strict=True):
        assert first.labels == second.labels
        assert first.probabilities == pytest.approx(second.probabilities, abs=1e-4)
    alone = release.task.predict(
        TransformersEngine(release.model, precision="fp32", token_budget=1), examples
    )
    assert [row.labels for row in alone] == [row.labels for row in again]


def test_a_neutral_word_changes_no_answer_and_the_sign_does(tmp_path: Path) -> None:
    study = tiny.choice_study(tmp_path, "train.epochs=8", family="phi", num_rows=240)
    release = load(tiny.trial(study, tmp_path).run().checkpoint)

    def label(text: str) -> tuple[str, ...]:
        return release.task.predict(release.engine, [Example("a", text)])[0].labels

    assert (
        label("patient with infection after surgery")
        == label("study with infection before surgery")
        == ("fever",)
    )
    assert label("patient with glucose after surgery") == ("renal failure",)


@pytest.mark.document(
    "002",
    "20 tokens are generated and the disease is read out of them",
    where="`task.decoding: generate`",
    how="where it is set; by default all labels are scored, which never fails to name one",
)
def test_a_generated_answer_is_scored_by_the_same_scorer(tmp_path: Path) -> None:
    study = tiny.choice_study(
        tmp_path, "task.decoding=generate", "train.epochs=4", family="phi", num_rows=240
    )
    trial = tiny.trial(study, tmp_path)
    result = trial.run()
    best = result.best.metrics
    assert 0 <= best["parse_failure_rate"] < 0.5
    assert best["accuracy"] > 0.6
    release = load(result.checkpoint)
    again = release.task.predict(release.engine, trial.material.validation)
    values = release.task.score(again, trial.material.validation).values
    assert {name: values[name] for name in ("accuracy", "parse_failure_rate")} == {
        name: best[name] for name in ("accuracy", "parse_failure_rate")
    }
