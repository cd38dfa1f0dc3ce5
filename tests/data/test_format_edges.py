"""Real files differ from their layout: empty cells, repeated names, no header, half characters."""

from pathlib import Path
from typing import Any

import pytest

from medray import plugins
from medray.errors import DataError
from medray.types import Example


def read(name: str, path: Path, **settings: Any) -> list[Example]:
    format = plugins.find("data.formats", name)
    return list(format.read(format.Options(name=name, path=str(path), **settings)))


def write(name: str, path: Path, examples: list[Example], **settings: Any) -> None:
    format = plugins.find("data.formats", name)
    format.write(examples, format.Options(name=name, path=str(path), **settings))


def file(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def test_a_file_without_a_header_has_its_columns_from_the_options_and_blank_rows_are_skipped(
    tmp_path: Path,
) -> None:
    path = file(tmp_path, "symptoms.csv", ",,\r\nFlu,fever, cough\r\n,,\r\nFlu ,fever,\r\n")
    rows = read(
        "delimited", path, columns=("disease", "s1", "s2"), text=("s1", "s2"), label="disease"
    )
    assert [(e.id, e.text, e.labels, e.where) for e in rows] == [
        ("2", "fever cough", ("Flu",), f"{path}:2"),
        ("4", "fever", ("Flu",), f"{path}:4"),
    ]
    copy = tmp_path / "copy.csv"
    write(
        "delimited",
        copy,
        rows,
        columns=("id", "disease", "s1"),
        text=("s1",),
        label="disease",
        id="id",
    )
    assert copy.read_text().splitlines() == ["2,Flu,fever cough", "4,Flu,fever"]
    with pytest.raises(DataError, match=r"columns lacks id, which the examples need"):
        write(
            "delimited",
            tmp_path / "other.csv",
            rows,
            columns=("disease", "s1"),
            text=("s1",),
            label="disease",
        )


@pytest.mark.parametrize(
    ("separator", "ending"), [("|", "txt"), ("\t", "txt"), (";", "dat"), (",", "txt"), (",", "csv")]
)
def test_the_first_line_tells_the_delimiter_where_the_ending_does_not(
    tmp_path: Path, separator: str, ending: str
) -> None:
    path = file(
        tmp_path,
        f"rows.{ending}",
        separator.join(("id", "text", "label"))
        + "\n"
        + separator.join(("7", "some words", "a"))
        + "\n",
    )
    assert [(e.id, e.text, e.labels) for e in read("delimited", path, id="id")] == [
        ("7", "some words", ("a",))
    ]


def test_an_ambiguous_delimiter_is_an_error(tmp_path: Path) -> None:
    path = file(tmp_path, "rows.txt", "id|text, of the study|label\n1|x|a\n")
    with pytest.raises(
        DataError, match=r"rows\.txt:1: the delimiter may be any of .*data\.format\.delimiter"
    ):
        read("delimited", path)
    assert read("delimited", path, delimiter="|", text=("text, of the study",))[0].text == "x"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,text,text,label\n1,a,b,c\n", r"rows\.csv:1: the column 'text' occurs twice"),
        ("id,text,label\n1,a,b\n ,a,b\n", r"rows\.csv:3: the id is empty"),
        (
            'id,text,label\n1,"a\nb",c\n2,"a\nb","never\nclosed,d\n',
            r"rows\.csv:4: the quoted field that opens in line 5 does not close",
        ),
        ("id,text,label\n1,a,b,c\n", r"rows\.csv:2: has 4 values, the header has 3 columns"),
    ],
)
def test_a_table_that_cannot_be_right_is_named_with_the_line_its_row_starts_on(
    tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read("delimited", file(tmp_path, "rows.csv", content), id="id")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "", "text": "a", "label": "x"}', "the id is empty"),
        ('{"id": null, "text": "a", "label": "x"}', "the id is empty"),
        (
            '{"id": 1, "text": "a", "label": null}',
            "must be text, a whole number, or a list of these, found NoneType",
        ),
        ('{"id": 1, "text": "a", "label": "x", "split": 3}', "'split' must be text, found int"),
        ('{"id": 1, "text": "\\ud800", "label": "x"}', "half of a surrogate pair"),
        ("[" * 100_000, "nested too deeply|not valid JSON"),
    ],
)
def test_a_json_line_that_cannot_be_right_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: .*({message})"):
        read("jsonl", file(tmp_path, "rows.jsonl", line + "\n"), id="id", split="split")


def test_what_is_empty_is_no_metadata_and_a_label_counts_once(tmp_path: Path) -> None:
    table = file(tmp_path, "rows.csv", "text,label,patient,\na,x; y;x ,,0\n")
    (row,) = read("delimited", table, label_separator=";")
    assert (row.labels, dict(row.metadata)) == (("x", "y"), {})
    lines = file(
        tmp_path,
        "rows.jsonl",
        '{"text": "a", "label": ["x ", "x"], "patient": null, "ward": "", "beds": 0}\n',
    )
    (row,) = read("jsonl", lines)
    assert (row.labels, dict(row.metadata)) == (("x",), {"beds": "0"})


def test_a_class_folder_without_abstracts_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cancer").mkdir()
    file(tmp_path / "cancer", "1.txt", "<ID:1>\nTitle: t\nAbstract: a\n")
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"other: this class folder has no \.txt file"):
        read("raw_abstracts", tmp_path)


SEVERAL_KINDS = [
    Example("1", "one", ("a",), "train", {"ward": "5"}),
    Example("2", "two", (), None, {"site": "x"}),
]


@pytest.mark.parametrize(
    ("name", "target", "several"),
    [("delimited", "rows.csv", {"label_separator": ";"}), ("jsonl", "rows.jsonl", {})],
)
def test_ids_labels_and_sides_are_written_even_where_the_options_name_no_place_for_them(
    tmp_path: Path, name: str, target: str, several: dict[str, str]
) -> None:
    write(name, tmp_path / target, SEVERAL_KINDS, label=None)
    rows = read(name, tmp_path / target, id="id", split="split", label="label", **several)
    assert [(e.id, e.text, e.labels, e.split, dict(e.metadata)) for e in rows] == [
        (e.id, e.text, e.labels, e.split, dict(e.metadata)) for e in SEVERAL_KINDS
    ]


@pytest.mark.parametrize(
    ("name", "target", "bad", "message"),
    [
        ("delimited", "rows.csv", Example("2", "t", ("a", "b")), "set label_separator"),
        (
            "delimited",
            "rows.csv",
            Example("2", "t", ("a",), None, {"text": "other"}),
            "two columns would have one name",
        ),
        (
            "jsonl",
            "rows.jsonl",
            Example("2", "t", ("a",), None, {"text": "other"}),
            "metadata 'text' has the name of another field",
        ),
        (
            "raw_abstracts",
            "folder",
            Example("2", "t", ("a",), None, {"Abstract": "other"}),
            "metadata 'Abstract' has the name of another key",
        ),
        (
            "raw_abstracts",
            "folder",
            Example("1", "t", ("a",)),
            "id '1' is used twice under one label",
        ),
    ],
)
def test_a_write_that_fails_leaves_nothing_behind(
    tmp_path: Path, name: str, target: str, bad: Example, message: str
) -> None:
    settings = {"text": ("Abstract",)} if name == "raw_abstracts" else {}
    with pytest.raises(DataError, match=message):
        write(name, tmp_path / target, [Example("1", "t", ("a",)), bad], **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_header_that_another_delimiter_takes_apart_names_it(tmp_path: Path) -> None:
    path = file(tmp_path, "lab.csv", "text;label\na;b\n")
    with pytest.raises(
        DataError,
        match=r"lab\.csv:1: .*the first line has no ',': set data\.format\.delimiter to ';'$",
    ):
        read("delimited", path)
    assert [example.labels for example in read("delimited", path, delimiter=";")] == [("b",)]
