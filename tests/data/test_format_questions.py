"""Rows with typed questions: JSON lines with their own, a table or JSON lines with a file of
questions, and the audit of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medray.config.schema import validate
from medray.config.trial import DataConfig
from medray.data import dataset, reading
from medray.data.formats import typed_questions
from medray.data.formats.base.question_parsing import parse_answers, parse_questions
from medray.errors import ConfigError, DataError
from medray.evaluation.metrics import constant_f1
from medray.types import Example, Question, QuestionOption

QUESTIONS = """
urgent: {type: predicate, instructions: "Is it urgent?", options: {"true": Today}}
topic:
  type: choice
  instructions: What is it about?
  options: {billing: An invoice, visit: A date}
pain: {type: score, instructions: "How much pain?", options: [none, some, much]}
"""
PAIN = Question(
    "pain", "score", "How much pain?", tuple(map(QuestionOption, ("none", "some", "much")))
)
URGENT = Question(
    "urgent",
    "predicate",
    "Is it urgent?",
    (QuestionOption("true", "Today"), QuestionOption("false")),
)
TOPIC = Question(
    "topic",
    "choice",
    "What is it about?",
    (QuestionOption("billing", "An invoice"), QuestionOption("visit", "A date")),
)


def options_of(folder: Path, name: str, **settings: Any) -> typed_questions.Options:
    raw = {"name": "typed_questions", "path": str(folder / name), **settings}
    return validate(typed_questions.Options, raw, where="data.format")


def lines_of(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table_of(folder: Path, content: str) -> dict[str, Any]:
    (folder / "rows.csv").write_text(content)
    (folder / "questions.yaml").write_text(QUESTIONS)
    return {"question_file": str(folder / "questions.yaml")}


def test_a_table_has_a_column_per_question_of_the_file(tmp_path: Path) -> None:
    settings = table_of(
        tmp_path, "state,urgent,topic,pain,ward\nbill me,no,billing,,a\nache,true,visit,2,b\n"
    )
    first, second = typed_questions.read(options_of(tmp_path, "rows.csv", **settings))
    assert first.questions == (URGENT, TOPIC, PAIN)
    assert first.answers == ((0.0, 1.0), (1.0, 0.0), ())
    assert first.labels == ("urgent: false", "topic: billing")
    assert (first.text, first.metadata) == ("bill me", {"ward": "a"})
    assert second.answers == ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0, 1.0))
    assert second.without_answer() == replace(second, labels=(), answers=())


def test_the_words_of_both_wire_formats_are_the_same_questions(tmp_path: Path) -> None:
    system_one = {
        "urgent": {
            "type": "noul",
            "instructions": "Is it urgent?",
            "criteria": {"true": "Today"},
        },
        "topic": {
            "type": "choice",
            "instructions": "What is it about?",
            "criteria": {"billing": "An invoice", "visit": "A date"},
        },
        "pain": {
            "type": "score",
            "instructions": "How much pain?",
            "criteria": ["none", "some", "much"],
        },
    }
    decisions = [
        {
            "type": "predicate",
            "name": "urgent",
            "instructions": "Is it urgent?",
            "options": {"true": "Today"},
        },
        {
            "type": "choice",
            "name": "topic",
            "instructions": "What is it about?",
            "choices": [
                {"value": "billing", "description": "An invoice"},
                {"value": "visit", "description": "A date"},
            ],
        },
        {
            "type": "score",
            "name": "pain",
            "instructions": "How much pain?",
            "levels": [{"label": "none"}, {"label": "some"}, {"label": "much"}],
        },
    ]
    lines_of(
        tmp_path,
        {
            "state": {"age": 4},
            "questions": system_one,
            "expected": {"urgent": True, "pain": "some"},
        },
        {"state": "ache", "questions": decisions, "expected": [0.8, {"billing": 3, "visit": 1}, 0]},
    )
    first, second = typed_questions.read(options_of(tmp_path, "rows.jsonl"))
    assert first.text == '{"age": 4}'
    assert first.questions == second.questions == (URGENT, TOPIC, PAIN)
    assert first.answers == ((1.0, 0.0), (), (0.0, 1.0, 0.0))
    assert second.answers == ((0.8, 1 - 0.8), (0.75, 0.25), (1.0, 0.0, 0.0))
    # Their questions may differ from row to row, so they are no labels to balance a split by.
    assert first.labels == ()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"questions": {}}, "questions must be a mapping of names to questions"),
        ({"questions": {"a": {"type": "rank"}}}, "type 'rank' is not known; allowed: choice"),
        (
            {"questions": {"a": {"type": "choice", "instructions": "?", "choices": ["x"]}}},
            "has 1 options; a choice needs 2 to 255",
        ),
        (
            {"questions": {"a": {"type": "score", "instructions": "?", "levels": ["x", "x"]}}},
            "the option 'x' occurs twice",
        ),
        (
            {"questions": {"a": {"type": "noul", "instructions": "?", "criteria": ["maybe"]}}},
            "the options of a predicate are true and false, found 'maybe'",
        ),
        (
            {"questions": {"a": {"type": "noul", "instructions": " "}}},
            "instructions must be a text; it may lack where options have descriptions",
        ),
        (
            {"questions": {"a": {"type": "noul", "instruction": "?"}}},
            "key 'instruction' is not known; .*did you mean 'instructions'",
        ),
        ({"expected": {"urgnt": True}}, "no question has the name 'urgnt'; .*mean 'urgent'"),
        (
            {"expected": {"urgent": "perhaps"}},
            "answer 'perhaps' is no option; allowed: false, true",
        ),
        ({"expected": {"urgent": {"true": -1}}}, "'true' has -1; give a number from 0"),
        ({"expected": {"urgent": {"true": 0}}}, "the shares have the sum 0"),
        ({"expected": [True, False]}, "has 2 answers to 1 questions"),
    ],
)
def test_a_mistake_names_the_row_and_what_is_allowed(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    plain = {"urgent": {"type": "predicate", "instructions": "Is it urgent?"}}
    path = lines_of(tmp_path, {"state": "a", "questions": plain, "expected": {}, **row})
    with pytest.raises(DataError, match=f"rows.jsonl:1: .*{message}"):
        list(typed_questions.read(options_of(tmp_path, path.name)))


def test_a_table_without_a_file_of_questions_or_without_a_column_is_refused(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="is a table, which cannot hold questions"):
        options_of(tmp_path, "rows.csv")
    settings = table_of(tmp_path, "state,urgent,topic\na,no,visit\n")
    (problem,) = typed_questions.check(options_of(tmp_path, "rows.csv", **settings))
    assert problem.endswith(
        "rows.csv:1: question 'pain' has no column; add it, or remove the question"
    )


def test_rows_are_written_and_read_again_with_questions_and_shares(tmp_path: Path) -> None:
    settings = table_of(
        tmp_path, "id,state,urgent,topic,pain,ward\n1,pay,no,billing,,a\n2,ache,true,visit,2,b\n"
    )
    rows = list(typed_questions.read(options_of(tmp_path, "rows.csv", id="id", **settings)))
    typed_questions.write(rows, options_of(tmp_path, "copy.jsonl", id="id"))
    copy = typed_questions.read(options_of(tmp_path, "copy.jsonl", id="id"))
    assert [replace(row, where="", labels=()) for row in rows] == [
        replace(row, where="") for row in copy
    ]
    with pytest.raises(DataError, match="has no questions, which this format requires"):
        typed_questions.write([Example("1", "a")], options_of(tmp_path, "other.jsonl"))


def test_a_large_file_keeps_questions_and_answers_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = table_of(
        tmp_path, "state,urgent,topic,pain\n" + "bill me,no,billing,1\nache,yes,visit,2\n" * 2
    )
    monkeypatch.setenv("MEDRAY_CACHE", str(tmp_path / "cache"))
    options = options_of(tmp_path, "rows.csv", **settings)
    in_memory = reading.load(options).examples
    monkeypatch.setattr(reading, "LARGE_BYTES", 1)
    assert reading.load(options).examples == in_memory


def data_of(folder: Path, **settings: Any) -> dataset.Dataset:
    rows = "".join(
        f"text {number},{number % 2},{('visit', 'billing')[number % 10 == 0]},{number % 3}\n"
        for number in range(60)
    )
    files = table_of(folder, "state,urgent,topic,pain\n" + rows)
    return dataset.load(
        DataConfig.model_validate(
            {
                "format": {
                    "name": "typed_questions",
                    "path": str(folder / "rows.csv"),
                    **files,
                },
                "near_duplicate": 1.0,
                **settings,
            }
        )
    )


def test_the_audit_counts_the_answers_to_each_question_and_the_split_balances_them(
    tmp_path: Path,
) -> None:
    data = data_of(tmp_path)
    audit = data.audit({}, 512, constant_f1)
    assert audit.questions == {
        "urgent": {"true": 30, "false": 30},
        "topic": {"billing": 6, "visit": 54},
        "pain": {"none": 20, "some": 20, "much": 20},
    }
    assert "question topic: billing 6 (10.0%), visit 54 (90.0%)" in audit.render()
    for rows in (data.train, data.validation, data.open_test(tmp_path, "a test").examples):
        assert any("topic: billing" in row.labels for row in rows)
    assert not any(row.answers for row in data.unlabelled_test())


def test_many_different_questions_are_counted_by_kind(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "state": f"text {number}",
            "questions": {f"q{number}": {"type": "noul", "instructions": f"Is it {number}?"}},
            "expected": {f"q{number}": True},
        }
        for number in range(60)
    ]
    lines_of(tmp_path, *rows)
    config = DataConfig.model_validate(
        {"format": {"name": "typed_questions", "path": str(tmp_path / "rows.jsonl")}}
    )
    assert dataset.load(config).audit({}, 512, constant_f1).questions == {
        "predicate": {"answers": 60}
    }


def test_another_question_is_another_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = data_of(tmp_path).fingerprint
    assert data_of(tmp_path).fingerprint == before
    monkeypatch.setitem(globals(), "QUESTIONS", QUESTIONS.replace("urgent?", "very urgent?"))
    assert data_of(tmp_path).fingerprint != before


def test_corrections_of_labels_do_not_apply(tmp_path: Path) -> None:
    (tmp_path / "corrections.csv").write_text("id,label\n1,urgent: true\n")
    with pytest.raises(DataError, match="the rows have answers to questions"):
        data_of(tmp_path, corrections=str(tmp_path / "corrections.csv"))


@pytest.mark.parametrize(
    ("levels", "score", "shares"),
    [
        (["none", "some", "much"], 1.5, (0, 0.5, 0.5)),
        (["none", "some", "much"], 2.0, (0, 0, 1)),
        (["1", "2", "3"], 1.25, (0.75, 0.25, 0)),
        (["1.0", "2.0"], 1.0, (1, 0)),
    ],
)
def test_a_score_may_lie_between_two_levels(
    levels: list[str], score: float, shares: tuple[float, ...]
) -> None:
    raw = {"pain": {"type": "score", "instructions": "How much?", "options": levels}}
    questions = parse_questions(raw, "a")
    assert parse_answers(questions, {"pain": score}, "a") == (shares,)
    with pytest.raises(DataError, match="is no option"):
        parse_answers(questions, {"pain": 3.5}, "a")


def test_a_question_whose_options_are_described_needs_no_instructions() -> None:
    criteria = {"true": "The patient is dead.", "false": "The patient lives."}
    (question,) = parse_questions({"dead": {"type": "noul", "criteria": criteria}}, "a")
    assert (question.instructions, question.options[0].description) == ("", criteria["true"])
