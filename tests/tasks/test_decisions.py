"""Typed questions: rows and their layout, the loss, answers, and what must not change an answer."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from engines.test_scoring import make
from support import tiny

from medray.engines.transformers import TransformersEngine
from medray.errors import DataError
from medray.tasks.base.branches import BranchLoss, BranchRow
from medray.tasks.base.protocol import LossInputs, QuestionTask, TallyTask, restore
from medray.tasks.decisions import task as decisions
from medray.tasks.decisions.task import MOST_QUESTIONS, Options, Task
from medray.types import Branch, Example, Question, QuestionOption

CAUSE = Question(
    "cause",
    "choice",
    "the study of",
    (
        QuestionOption("fever", "blood culture"),
        QuestionOption("renal failure"),
        QuestionOption("heart failure", "no rhythm"),
    ),
)
SURGERY = Question(
    "surgery", "predicate", "after surgery", (QuestionOption("true"), QuestionOption("false"))
)
GROWTH = Question("growth", "score", "the growth", tuple(map(QuestionOption, ("no", "cell"))))
EOS = 1


def task_of(**options) -> Task:
    return Task.fit(
        Options(name="decisions", **{"max_length": 100, "question": " {question} was", **options}),
        [],
        [row()],
    )


def row(text="the tumour", **changes) -> Example:
    answers = ((0.0, 1.0, 0.0), (), (0.25, 0.75))
    return replace(
        Example("a", text, questions=(CAUSE, SURGERY, GROWTH), answers=answers), **changes
    )


def ids_of(text):
    return tuple(tiny.tokenizer("llama")(text)["input_ids"])


def engine_of(folder: Path, token_budget: int = 400) -> TransformersEngine:
    return TransformersEngine(make(folder, "llama"), precision="fp32", token_budget=token_budget)


def test_a_row_is_a_text_with_the_questions_it_answers_and_all_their_options():
    (encoded,) = task_of().encode([row()], tiny.tokenizer("llama"))
    layout = BranchRow.parse(encoded.tokens, encoded.target)
    wording = "the study of fever: blood culture heart failure: no rhythm was"
    assert layout == BranchRow(
        ids_of("the tumour"),
        (
            Branch(
                ids_of(wording),
                (
                    (*ids_of("fever"), EOS),
                    (*ids_of("renal failure"), EOS),
                    (*ids_of("heart failure"), EOS),
                ),
            ),
            Branch(ids_of("the growth was"), ((*ids_of("no"), EOS), (*ids_of("cell"), EOS))),
        ),
        ((0.0, 1.0, 0.0), (0.25, 0.75)),
    )
    assert layout.tokens() == encoded.tokens
    (request,) = task_of().encode([row().without_answer()], tiny.tokenizer("llama"))
    assert len(BranchRow.parse(request.tokens, request.target).branches) == 3


def test_a_text_is_cut_for_its_own_questions_whatever_else_is_in_the_batch():
    task, long = task_of(max_length=24), "tumour cell growth stage nodes lung airway in group was"
    short = row(long, questions=(GROWTH,), answers=((0.5, 0.5),))
    alone = task.encode([short], tiny.tokenizer("llama"))
    together = task.encode([short, row(long)], tiny.tokenizer("llama"))
    assert together[0] == alone[0]
    assert [encoded.truncated for encoded in together] == [False, True]
    prompt = BranchRow.parse(together[1].tokens, together[1].target).prompt
    assert prompt == ids_of("tumour cell growth stage nodes lung airway in")


def test_the_loss_is_the_cross_entropy_of_the_shares_per_question():
    target = task_of().encode([row()], tiny.tokenizer("llama"))[0].target
    loss = BranchLoss.of([target])
    assert loss.weights.tolist() == [2]
    scores = [[torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, -0.5])]]
    value = loss(scores, LossInputs([target], torch.ones(1), torch.ones(1, 1)))
    first, second = (torch.log_softmax(each, 0) for each in scores[0])
    assert value.tolist() == pytest.approx([float(-first[1] - 0.25 * second[0] - 0.75 * second[1])])


def test_answers_do_not_depend_on_the_order_of_options_or_questions(tmp_path):
    """The descriptions of the options of a choice are in the question."""
    engine, task = engine_of(tmp_path), task_of()
    other_order = replace(CAUSE, options=CAUSE.options[::-1])
    texts = ["the tumour renal", "culture of blood and fever after surgery"]
    for text in texts:
        (first,) = task.predict(engine, [row(text)])
        (second,) = task.predict(engine, [row(text, questions=(GROWTH, other_order, SURGERY))])
        by_name = {answer.name: answer for answer in second.answers}
        for answer in first.answers:
            other = by_name[answer.name]
            shares = dict(zip(other.values, other.probabilities, strict=True))
            assert [shares[value] for value in answer.values] == pytest.approx(
                answer.probabilities, abs=1e-5
            )
            assert other.value == answer.value
            assert max(answer.probabilities) - min(answer.probabilities) > 1e-3


def test_answers_do_not_depend_on_what_else_is_in_the_batch(tmp_path):
    engine, task = engine_of(tmp_path), task_of()
    rows = [
        replace(row(), id=str(number), text=f"tumour {'cell ' * number}", questions=questions)
        for number, questions in enumerate([(CAUSE,), (SURGERY, CAUSE), (GROWTH, CAUSE, SURGERY)])
    ]
    alone = [task.predict(engine_of(tmp_path, 1), [each])[0] for each in rows]
    for one, other in zip(task.predict(engine, rows), alone, strict=True):
        assert one.row_id == other.row_id
        for first, second in zip(one.answers, other.answers, strict=True):
            assert first.probabilities == pytest.approx(second.probabilities, abs=1e-5)


def test_another_description_or_instruction_is_another_question(tmp_path):
    engine, task = engine_of(tmp_path), task_of()
    other_words = replace(CAUSE, options=(QuestionOption("fever", "lung"), *CAUSE.options[1:]))
    asks_other = replace(CAUSE, instructions="the group of")
    answers = [
        task.predict(engine, [row(questions=(question,))])[0].answers[0].probabilities
        for question in (CAUSE, other_words, asks_other)
    ]
    for other in answers[1:]:
        assert np.abs(np.array(answers[0]) - np.array(other)).max() > 1e-4


def test_prepared_rows_answer_all_questions_also_those_without_a_right_answer(
    tmp_path, monkeypatch
):
    engine, task = engine_of(tmp_path), task_of(max_length=24)
    long = "tumour cell growth stage nodes lung airway in group was"
    shares = ((0.0, 1.0, 0.0), (1.0, 0.0), (0.25, 0.75))
    examples = [
        row("the renal " + long, answers=shares),
        row(long),
        row("the blood", answers=shares),
    ]
    examples = [replace(example, id=str(at)) for at, example in enumerate(examples)]
    rows = task.encode(examples, engine.tokenizer)
    predictions = task.predict(engine, examples)
    texts = []
    prompts = decisions.prompts
    monkeypatch.setattr(
        decisions,
        "prompts",
        lambda own, *args, **options: texts.extend(own) or prompts(own, *args, **options),
    )
    assert task.predict_rows(engine, examples, rows) == predictions
    assert texts == [long]  # the only row that leaves out a question


def test_a_text_is_asked_the_questions_of_the_training_rows(tmp_path):
    engine, task = engine_of(tmp_path), task_of()
    task = restore(task.options.model_dump(), json.loads(json.dumps(task.state())))
    assert isinstance(task, QuestionTask)
    assert isinstance(task, TallyTask)
    (prediction,) = task.predict(engine, [Example("b", "the tumour")])
    assert [answer.name for answer in prediction.answers] == ["cause", "surgery", "growth"]
    assert all(sum(answer.probabilities) == pytest.approx(1) for answer in prediction.answers)
    assert task.question_rows("x", [GROWTH])[0].questions == (GROWTH,)
    new_task = Task.fit(task.options, [])
    with pytest.raises(DataError, match="b: has no questions, and the task was trained for none"):
        new_task.predict(engine, [Example("b", "the tumour")])
    assert new_task.probe(engine, [Example("b", "the tumour")]).shape == (1, 2)


def test_questions_of_single_rows_are_counted_by_kind():
    train = [
        row(questions=(replace(GROWTH, name=f"q{number}"),), answers=((1.0, 0.0),))
        for number in range(MOST_QUESTIONS + 5)
    ]
    task = Task.fit(Options(name="decisions"), [], train)
    assert task.has_more
    assert len(task.questions) == MOST_QUESTIONS


def test_a_training_row_without_an_answer_and_options_of_the_same_tokens_are_refused():
    with pytest.raises(DataError, match="a: the row answers no question"):
        Task.fit(Options(name="decisions"), [], [row(answers=())])
    alike = replace(CAUSE, options=(QuestionOption("zebra"), QuestionOption("zoster")))
    with pytest.raises(DataError, match="options 'zebra' and 'zoster' are the same tokens"):
        task_of().encode([row(questions=(alike,), answers=((1.0, 0.0),))], tiny.tokenizer("llama"))


def test_a_label_is_the_answer_to_a_question_about_labels(tmp_path):
    options = Options(name="decisions", label_question="the cause was")
    sets = [Example("", "", (label,)) for label in ("fever", "cell", "fever")]
    train = [Example("a", "the tumour", ("cell",)), Example("b", "blood culture", ("fever",))]
    task = Task.fit(options, sets, train)
    (question,) = task.questions
    assert (question.name, question.values) == ("label", ("cell", "fever"))
    encoded = task.encode(train, tiny.tokenizer("llama"))
    layouts = [BranchRow.parse(each.tokens, each.target) for each in encoded]
    assert [layout.shares for layout in layouts] == [((1.0, 0.0),), ((0.0, 1.0),)]
    predictions = task.predict(engine_of(tmp_path), train)
    hits = [
        row.answers[0].value == each.labels[0] for row, each in zip(predictions, train, strict=True)
    ]
    assert task.score(predictions, train).values["accuracy"] == np.mean(hits)
    with pytest.raises(
        DataError, match=r"a: the row has no questions; .* set task\.label_question"
    ):
        Task.fit(Options(name="decisions"), sets, train)
    with pytest.raises(DataError, match="c: the row has the labels cell, fever"):
        task.encode([Example("c", "x", ("cell", "fever"))], tiny.tokenizer("llama"))


def test_a_text_with_1_10_or_100_questions_is_read_once_in_one_pass(tmp_path):
    engine, task = engine_of(tmp_path), task_of(max_length=128)
    passes: list[int] = []
    engine.network.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: passes.append(args[0].numel())
    )
    text = "the tumour renal blood " * 20

    def num_tokens(num_questions: int) -> int:
        passes.clear()
        questions = tuple(replace(SURGERY, name=f"q{place}") for place in range(num_questions))
        (answer,) = task.predict(engine, [row(text, questions=questions)])
        assert len(answer.answers) == num_questions
        (tokens,) = passes
        return tokens

    one, ten, hundred = map(num_tokens, (1, 10, 100))
    per_question = (ten - one) / 9
    assert hundred == one + 99 * per_question
    assert one - per_question == len(ids_of(text))
