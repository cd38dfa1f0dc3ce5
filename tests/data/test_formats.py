from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medray import plugins
from medray.config.load import plugin_options
from medray.errors import ConfigError, DataError
from medray.types import Example


def options(name: str, path: Path, **settings: Any) -> Any:
    return plugins.find("data.formats", name).Options(name=name, path=str(path), **settings)


def read(name: str, path: Path, **settings: Any) -> list[Example]:
    rows: Iterator[Example] = plugins.find("data.formats", name).read(
        options(name, path, **settings)
    )
    return list(rows)


def write(name: str, path: Path, examples: list[Example], **settings: Any) -> None:
    plugins.find("data.formats", name).write(examples, options(name, path, **settings))


def bare(examples: list[Example]) -> list[tuple[Any, ...]]:
    return sorted((e.id, e.text, e.labels, e.split, dict(e.metadata)) for e in examples)


RAW = (
    "<ID:10>\nJournal: Lung\nTitle: A title: with a colon.\nAbstract: First line\n  second "
    "line.\nMethods: none.\nKeywords: a, b\n"
)


def raw(folder: Path, text: str = RAW) -> Path:
    for label in ("cancer", "non_cancer"):
        (folder / label).mkdir(parents=True)
        (folder / label / "10.txt").write_text(
            text.replace("10", "10" if label == "cancer" else "11")
        )
    return folder


@pytest.mark.document(
    "000",
    "raw files of abstracts become rows of keys and values",
    where="`medray/data/formats/raw_abstracts.py`",
)
def test_raw_abstracts_reads_keys_values_over_lines_and_the_folder_as_label(tmp_path: Path) -> None:
    first, second = read("raw_abstracts", raw(tmp_path / "data"), keys=("Keywords",))
    assert first.text == "A title: with a colon. First line second line. Methods: none."
    assert (first.id, first.labels, dict(first.metadata)) == (
        "10",
        ("cancer",),
        {"Journal": "Lung", "Keywords": "a, b"},
    )
    assert first.where == f"{tmp_path}/data/cancer/10.txt:1"
    assert (second.id, second.labels) == ("11", ("non_cancer",))


@pytest.mark.document(
    "000",
    "title and abstract become the text, the folder the class",
    where="`data.format.text`",
)
def test_raw_abstracts_makes_the_text_of_the_given_keys(tmp_path: Path) -> None:
    first = read("raw_abstracts", raw(tmp_path / "data"), text=("Title",))[0]
    assert first.text == "A title: with a colon."
    assert "Journal" in first.metadata


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no id here\n", r"10\.txt:1: the first line must be <ID:…>$"),
        (b"", r"10\.txt:1: the first line must be <ID:…>"),
        (
            b"<ID:10>\nTitle: t\nAbstrct: a\n",
            r"10\.txt:1: has no key 'Abstract' .*did you mean 'Abstrct'",
        ),
        (
            b"<ID:10>\nTitle: t\nTitle: u\nAbstract: a\n",
            r"10\.txt:3: the key of this line occurs twice",
        ),
        (b"<ID:10>\nfree text\n", r"10\.txt:2: expected `Key: value`"),
        (b"<ID:10>\nTitle: t\nAbstract: caf\xe9\n", r"10\.txt:3: not UTF-8 text .*0xe9"),
    ],
)
def test_a_broken_abstract_is_named_with_its_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    folder = raw(tmp_path / "data")
    (folder / "cancer" / "10.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read("raw_abstracts", folder)


def test_raw_abstracts_needs_a_folder_per_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        read("raw_abstracts", tmp_path / "missing")
    (tmp_path / "data" / "cancer").mkdir(parents=True)
    with pytest.raises(DataError, match="at least two; found cancer"):
        read("raw_abstracts", tmp_path / "data")


CSV = (
    'pmid,condition,abstract,year\n7,cancer,"One, two\nthree ""quoted""",1999\n8,other,four,2000\n'
)


def test_delimited_maps_columns_and_keeps_the_others_as_metadata(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbf" + CSV.encode())
    first, second = read("delimited", path, id="pmid", text=("abstract",), label="condition")
    assert first == Example(
        "7", 'One, two\nthree "quoted"', ("cancer",), None, {"year": "1999"}, f"{path}:2"
    )
    assert second.where == f"{path}:4"


@pytest.mark.document(
    "001",
    "a pipe-delimited file of ID, title with abstract, and label",
    where="`medray/data/formats/delimited.py`",
)
def test_delimited_reads_the_combined_pipe_file_and_several_labels(tmp_path: Path) -> None:
    path = tmp_path / "combined.psv"
    path.write_text("ID|Title_Abstract|Label\n1|A study. It ended.|Cancer;Renal\n2|Another.|\n")
    rows = read(
        "delimited", path, id="ID", text=("Title_Abstract",), label="Label", label_separator=";"
    )
    assert [example.labels for example in rows] == [("Cancer", "Renal"), ()]
    with pytest.raises(DataError, match=r"combined\.psv:3: the label is empty"):
        read("delimited", path, id="ID", text=("Title_Abstract",), label="Label")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"pmid,condition,abstrct\n",
            r"rows\.csv:1: data\.format\.text\.0 names 'abstract'; .*did you mean 'abstrct'",
        ),
        (b"pmid,condition,abstract\n1,a\n", r"rows\.csv:2: has 2 values, the header has 3 columns"),
        (b"pmid,condition,abstract\n1,a,ok\n2,b,bad \xff\n", r"rows\.csv:3: not UTF-8 text"),
        (
            b'pmid,condition,abstract\n1,a,"open\n',
            r"rows\.csv:2: the quoted field that opens in line 2 does not close; repair it",
        ),
        (b"", r"rows\.csv:1: the file is empty"),
    ],
)
def test_a_broken_table_is_named_with_its_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read("delimited", path, id="pmid", text=("abstract",), label="condition")


def test_an_unknown_label_is_an_error_with_the_nearest_known_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(CSV)
    with pytest.raises(
        DataError,
        match=(
            r"rows\.csv:4: label 'other' is not one of the labels; allowed: cancer, others; did "
            r"you mean 'others'"
        ),
    ):
        read(
            "delimited",
            path,
            id="pmid",
            text=("abstract",),
            label="condition",
            labels=("cancer", "others"),
        )


def test_jsonl_takes_one_label_or_a_list_and_nested_metadata(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"text": "a", "label": "x", "more": {"k": [1]}}\n\n{"text": "b", "label": ["x", "y"], '
        '"part": "test"}\n'
    )
    first, second = read("jsonl", path, split="part")
    assert (first.id, first.labels, dict(first.metadata)) == ("1", ("x",), {"more": '{"k": [1]}'})
    assert (second.id, second.labels, second.split, second.where) == (
        "3",
        ("x", "y"),
        "test",
        f"{path}:3",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a", "label": "x"\n', r"rows\.jsonl:1: not valid JSON"),
        ('{"text": "a", "label": "x"}\n[1]\n', r"rows\.jsonl:2: must be a JSON object, found list"),
        (
            '{"txt": "a", "label": "x"}\n',
            r"rows\.jsonl:1: data\.format\.text\.0 names 'text'; .*did you mean 'txt'",
        ),
        ('{"text": 3, "label": "x"}\n', r"rows\.jsonl:1: 'text' must be text, found int"),
        (
            '{"text": "a", "label": 1.5}\n',
            r"rows\.jsonl:1: 'label' must be text, a whole number, .*, found float; write",
        ),
    ],
)
def test_a_broken_json_line_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read("jsonl", path)


SOME = [
    Example(
        "a1", 'Text with | pipe, comma; and "quotes".', ("cancer",), "train", {"Journal": "Lung"}
    ),
    Example("a2", "Ünïcode text", ("non_cancer",), "test", {"Journal": "Übersee: a"}),
]
TARGETS: list[tuple[str, str, dict[str, Any]]] = [
    ("raw_abstracts", "folder", {"text": ("Abstract",)}),
    ("delimited", "rows.csv", {"id": "id", "split": "split"}),
    ("delimited", "rows.tsv", {"id": "id", "split": "split", "label_separator": ";"}),
    (
        "delimited",
        "rows.psv",
        {"id": "ID", "text": ("Title_Abstract",), "label": "Label", "split": "split"},
    ),
    ("jsonl", "rows.jsonl", {"id": "id", "split": "split"}),
]


@pytest.mark.parametrize(("name", "file", "settings"), TARGETS)
@pytest.mark.parametrize(("second", "second_file", "second_settings"), TARGETS)
def test_every_format_converts_to_every_other_without_a_loss(
    tmp_path: Path,
    name: str,
    file: str,
    settings: dict[str, Any],
    second: str,
    second_file: str,
    second_settings: dict[str, Any],
) -> None:
    write(name, tmp_path / "one" / file, SOME, **settings)
    examples = read(name, tmp_path / "one" / file, **settings)
    assert bare(examples) == bare(SOME)
    write(second, tmp_path / "two" / second_file, examples, **second_settings)
    assert bare(read(second, tmp_path / "two" / second_file, **second_settings)) == bare(SOME)


def test_an_existing_target_is_left_alone(tmp_path: Path) -> None:
    for name, file, settings in TARGETS:
        path = tmp_path / file
        write(name, path, SOME, **settings)
        with pytest.raises(DataError, match="exists already"):
            write(name, path, SOME, **settings)
        path.rename(tmp_path / f"{name}-{file}")


def test_raw_abstracts_refuses_what_its_layout_cannot_hold(tmp_path: Path) -> None:
    for number, (example, message) in enumerate(
        [
            (Example("../../etc/x", "t", ("a",)), "cannot be a file name"),
            (Example("1", "t", ("..",)), "cannot be a file name"),
            (Example("1", "t", ("a", "b")), "has 2 labels"),
            (Example("1", "t", ("a",), None, {"bad: key": "v"}), "cannot be a key"),
        ]
    ):
        with pytest.raises(DataError, match=message):
            write("raw_abstracts", tmp_path / str(number), [example], text=("Abstract",))


def test_check_tells_mistakes_without_reading_everything(tmp_path: Path) -> None:
    for name, wrong in (
        ("raw_abstracts", "no such folder"),
        ("delimited", "no such file"),
        ("jsonl", "no such file"),
    ):
        (sentence,) = plugins.find("data.formats", name).check(options(name, tmp_path / "missing"))
        assert wrong in sentence
    path = tmp_path / "rows.csv"
    path.write_text(CSV)
    assert (
        plugins.find("data.formats", "delimited").check(
            options("delimited", path, text=("abstract",), label="condition")
        )
        == []
    )
    (sentence,) = plugins.find("data.formats", "delimited").check(
        options("delimited", path, text=("abstrat",), label="cond")
    )
    assert "did you mean 'abstract'" in sentence
    assert "label names 'cond'" in sentence


def test_options_on_one_line_become_a_formats_options() -> None:
    parsed_options = plugin_options(
        "data.formats", "name=delimited,path=a.csv,text=[Title, Abstract],label=Label"
    )
    assert parsed_options.model_dump(exclude_unset=True) == {
        "name": "delimited",
        "path": "a.csv",
        "text": ("Title", "Abstract"),
        "label": "Label",
    }
    with pytest.raises(ConfigError, match=r"unknown key; .*did you mean 'path'"):
        plugin_options("data.formats", "name=jsonl,pth=x")
    with pytest.raises(ConfigError, match="not of the form"):
        plugin_options("data.formats", "jsonl")
