"""Typed questions answered by an encoder: the rows of options, the loss, and what must not change
an answer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny
from tasks.test_decisions import CAUSE, GROWTH, SURGERY, row, task_of
from transformers import AutoConfig

from medray.config.trial import LoraConfig, ModelOptions
from medray.engines.transformers import TransformersEngine
from medray.errors import ConfigError, DataError
from medray.models import sources
from medray.models.architecture import is_encoder
from medray.models.build import BuiltModel, build
from medray.tasks.base.branches import BranchRow, HeadBranchLoss
from medray.tasks.base.protocol import EncoderTask, restore
from medray.tasks.decisions.task import Task
from medray.training.plan import MicroBatch
from medray.types import QuestionOption

FAMILIES = ("bert", "roberta", "distilbert", "electra", "modernbert")
CLS, SEP = 2, 3


def encoder_task(**options) -> Task:
    task = task_of(**options)
    assert isinstance(task, EncoderTask)
    return task.for_encoder()


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(tiny.tokenizer("bert")(text, add_special_tokens=False)["input_ids"])


def model_of(folder: Path, family: str = "bert") -> BuiltModel:
    """Build a model whose adapter and head change its outputs."""
    model = build(
        sources.resolve(str(tiny.base(folder, family))),
        encoder_task().head(),
        ModelOptions(),
        LoraConfig(),
        seed=1,
    )
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return model


def engine_of(model: BuiltModel, token_budget: int = 400) -> TransformersEngine:
    return TransformersEngine(model, precision="fp32", token_budget=token_budget)


def test_each_option_is_a_row_of_question_option_and_text() -> None:
    (encoded,) = encoder_task().encode([row()], tiny.tokenizer("bert"))
    layout = BranchRow.parse(encoded.tokens, encoded.target)
    assert layout.prompt == ()
    assert layout.shares == ((0.0, 1.0, 0.0), (0.25, 0.75))  # the answered questions
    first, second = (branch.continuations for branch in layout.branches)
    options = ("fever: blood culture", "renal failure", "heart failure: no rhythm")
    assert first == tuple(
        (CLS, *ids_of("the study of"), SEP, *ids_of(option), SEP, *ids_of("the tumour"), SEP)
        for option in options
    )
    assert len(second) == 2
    assert layout.tokens() == encoded.tokens


def test_only_the_text_is_cut_and_all_options_of_a_question_read_the_same_part() -> None:
    text = "tumour cell growth stage nodes lung airway in group was"
    task = encoder_task(max_length=20)
    rows = task.encode([row(text), row("the tumour", id="b")], tiny.tokenizer("bert"))
    assert [encoded.truncated for encoded in rows] == [True, False]
    first, second = BranchRow.parse(rows[0].tokens, rows[0].target).branches
    assert max(map(len, first.continuations)) == 20
    lead = (CLS, *ids_of("the study of"), SEP, *ids_of("renal failure"), SEP)
    longest = (CLS, *ids_of("the study of"), SEP, *ids_of("heart failure: no rhythm"), SEP)
    room = 20 - len(longest) - 1
    assert first.continuations[1] == (*lead, *ids_of(text)[:room], SEP)
    # A shorter question reads more of the text, whatever the others are.
    assert second.continuations[0][-11:] == (*ids_of(text), SEP)
    end = encoder_task(max_length=20, keep="end").encode([row(text)], tiny.tokenizer("bert"))
    options = BranchRow.parse(end[0].tokens, end[0].target).branches[0].continuations
    assert options[1] == (*lead, *ids_of(text)[-room:], SEP)
    with pytest.raises(ConfigError, match="max_length: 9 leaves no room for text"):
        encoder_task(max_length=9).encode([row(text)], tiny.tokenizer("bert"))


def test_options_of_the_same_tokens_and_a_tokenizer_without_separators_are_refused() -> None:
    alike = replace(CAUSE, options=(QuestionOption("zebra"), QuestionOption("zoster")))
    with pytest.raises(DataError, match="options 'zebra' and 'zoster' are the same tokens"):
        encoder_task().encode([row(questions=(alike,), answers=())], tiny.tokenizer("bert"))
    with pytest.raises(ConfigError, match="ends a text without a separator"):
        encoder_task().encode([row()], tiny.tokenizer("llama"))


@pytest.mark.parametrize("family", FAMILIES)
def test_neither_order_nor_other_questions_nor_the_batch_change_an_answer(
    tmp_path: Path, family: str
) -> None:
    model, task = model_of(tmp_path, family), encoder_task()
    other_order = replace(CAUSE, options=CAUSE.options[::-1])
    texts = ["the tumour renal", "culture of blood and fever after surgery", "tumour " * 9]
    rows = [row(text, id=str(number)) for number, text in enumerate(texts)]
    variants = [replace(each, questions=(GROWTH, other_order, SURGERY)) for each in rows]
    together = task.predict(engine_of(model), rows)
    alone = [task.predict(engine_of(model, 1), [each])[0] for each in variants]
    for first, second in zip(together, alone, strict=True):
        by_name = {answer.name: answer for answer in second.answers}
        for answer in first.answers:
            other = by_name[answer.name]
            shares = dict(zip(other.values, other.probabilities, strict=True))
            assert [shares[value] for value in answer.values] == pytest.approx(
                answer.probabilities, abs=1e-5
            )
    spread = [max(answer.probabilities) - min(answer.probabilities) for answer in first.answers]
    assert min(spread) > 1e-3


def test_another_text_question_or_description_is_another_answer(tmp_path: Path) -> None:
    engine, task = engine_of(model_of(tmp_path)), encoder_task()
    other_words = replace(CAUSE, options=(QuestionOption("fever", "lung"), *CAUSE.options[1:]))
    rows = [
        row(questions=(CAUSE,)),
        row("the lung", questions=(CAUSE,)),
        row(questions=(other_words,)),
        row(questions=(replace(CAUSE, instructions="the group of"),)),
    ]
    own, *others = (each.answers[0].probabilities for each in task.predict(engine, rows))
    for other in others:
        assert np.abs(np.array(own) - np.array(other)).max() > 1e-4


def test_a_restored_task_reads_rows_of_options_too() -> None:
    task = encoder_task()
    again = restore(task.options.model_dump(), task.state())
    assert again == task
    assert again.head() is not None
    decoder = task_of()
    assert "is_encoder" not in decoder.state()  # as in releases of decoders
    assert restore(decoder.options.model_dump(), decoder.state()).head() is None


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_the_loss_is_the_cross_entropy_of_the_head_over_options(
    tmp_path: Path, family: str
) -> None:
    study = tiny.decision_study(tmp_path, "lora.dropout=0", family=family)
    trial = tiny.trial(study, tmp_path)
    loop, rows = trial.make_loop(), (0, 3, 4)
    assert isinstance(loop.row_loss, HeadBranchLoss)
    sums = loop.loss(MicroBatch(rows))
    for value, at in zip(sums, rows, strict=True):
        layout = BranchRow.parse(trial.rows.tokens(at).tolist(), trial.rows.target(at))
        reference = 0.0
        for branch, shares in zip(layout.branches, layout.shares, strict=True):
            scores = [
                float(trial.model.network(torch.tensor([ids])).logits[0, 0].detach())
                for ids in branch.continuations
            ]
            logs = torch.log_softmax(torch.tensor(scores), 0)
            reference -= float((torch.tensor(shares) * logs).sum())
        assert float(value.detach()) == pytest.approx(reference, rel=1e-4)
    longest = max(len(ids) for branch in layout.branches for ids in branch.continuations)
    assert loop.row_loss.shape(trial.rows.target(rows[-1])) == (8, longest)


def test_the_configuration_of_a_base_model_says_whether_it_is_an_encoder() -> None:
    for kind in (*FAMILIES, "deberta-v2"):
        assert is_encoder(AutoConfig.for_model(kind)), kind
    for kind in (*tiny.DECODERS, "gpt2"):
        assert not is_encoder(AutoConfig.for_model(kind)), kind
    assert not is_encoder(AutoConfig.for_model("bert", is_decoder=True))
