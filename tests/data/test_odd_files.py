"""Files as people save them: `medray init` accepts or refuses each, and `medray predict` reads the
same texts."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import odd_files
from support.odd_files import NUM_ROWS, text

from medray import cli, types
from medray.batch import inputs, rows, shards
from medray.config.load import load_study, plugin_options
from medray.data import corrections, dataset
from medray.data.columns import Hints
from medray.data.first_study import first_study
from medray.data.formats.base import protocol
from medray.data.guess import Sketch, sketch
from medray.errors import ConfigError, DataError
from medray.evaluation.metrics import constant_f1
from medray.text import dialect

COLUMNS = {"text": ["Title_Abstract"], "label": "Label", "id": "ID"}
NO_NAMES = {
    "columns": ["column_1", "column_2", "column_3"],
    "text": ["column_2"],
    "label": "column_3",
}
RAW = {"text": ["Title", "Abstract"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    odd_files.build(place := tmp_path_factory.mktemp("odd"))
    return place


def options(result: Sketch) -> dict[str, Any]:
    settings = result.options.model_dump(mode="json", exclude_unset=True)
    return {key: value for key, value in settings.items() if key not in ("name", "path")}


def read_to_predict(path: Path) -> list[rows.InputRow]:
    source = inputs.find(str(path))
    columns = inputs.columns(source, inputs.head(source), shards.TextColumns())
    return [row for shard in source.shards for row in rows.read(shard, columns, 2_000_000)]


GOOD = {
    "commas.csv": COLUMNS,
    "excel.csv": {"delimiter": ";", **COLUMNS},
    "semicolons.csv": {"delimiter": ";", **COLUMNS},
    "tabs.csv": {"delimiter": "\t", **COLUMNS},
    "pipes.txt": {"delimiter": "|", **COLUMNS},
    "cp1252.csv": {"delimiter": ";", "encoding": "cp1252", **COLUMNS},
    "utf_16.csv": {"delimiter": "\t", "encoding": "utf-16", **COLUMNS},
    "utf_16_without_mark.csv": {"encoding": "utf-16-le", **COLUMNS},
    "na_labels.csv": COLUMNS,
    "same_id_twice.csv": {key: value for key, value in COLUMNS.items() if key != "id"},
    "missing_id.csv": {key: value for key, value in COLUMNS.items() if key != "id"},
    "zero_and_one.csv": COLUMNS,
    "one_and_one_point_zero.csv": COLUMNS,
    "two_spellings.csv": COLUMNS,
    "a_long_line.csv": COLUMNS,
    "five_long_lines.csv": COLUMNS,
    "carriage_returns.csv": {"delimiter": ";", **COLUMNS},
    "line_break_in_header.csv": {
        "text": ["Title Abstract"],
        "label": "Label (0 = no, 1 = yes)",
        "id": "ID",
    },
    "no_header.csv": NO_NAMES,
    "sep.csv": {"delimiter": ";", **COLUMNS},
    "sep_in_quotes.csv": {"delimiter": ";", **COLUMNS},
    "table.parquet": COLUMNS,
    "raw_as_meant": RAW,
    "raw_returns": RAW,
    "raw_latin": {"encoding": "cp1252", **RAW},
}
OTHER_ROWS = {"raw_capital_ending": 25, "raw_folder_below": 25, "raw_other_files": 24}
NOTES = {
    "cp1252.csv": ["the file is not UTF-8 and is read as cp1252: check letters beyond a to z"],
    "utf_16.csv": ["the file is not UTF-8 and is read as utf-16: check letters beyond a to z"],
    "utf_16_without_mark.csv": [
        "the file is not UTF-8 and is read as utf-16-le: check letters beyond a to z"
    ],
    "raw_latin": ["the files are not UTF-8 and are read as cp1252: check letters beyond a to z"],
    "no_header.csv": [
        (
            "the first line is read as a row, since it names no columns; data.format.columns can "
            "name them"
        ),
        "'column_3' is read as the label because its values repeat; --label-column names another",
    ],
    "same_id_twice.csv": [
        (
            "the column 'ID' cannot give ids: 1 rows have the value of another row; rows are "
            "numbered instead"
        )
    ],
    "one_and_one_point_zero.csv": ["the labels '1' and '1.0' differ in spelling alone"],
    "two_spellings.csv": ["the labels 'CANCER' and 'cancer' differ in spelling alone"],
    "missing_id.csv": [
        "the column 'ID' cannot give ids: 1 rows have none; rows are numbered instead"
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_a_file_that_can_be_read_gives_a_study_and_predict_reads_the_same_texts(
    folder: Path, tmp_path: Path, name: str
) -> None:
    result = sketch(str(folder / name), Hints())
    assert options(result) == GOOD[name]
    assert (result.num_rows, list(result.notes)) == (NUM_ROWS, NOTES.get(name, []))
    if not name.startswith("five"):
        assert text(7) in {
            example.text.removeprefix("Study 7 ") + " " for example in protocol.read(result.options)
        }
    positive = max(result.labels) if len(result.labels) == 2 else None
    (tmp_path / "study.yaml").write_text(
        study := first_study(result, str(tmp_path / "study.yaml"), positive)
    )
    assert all(f"# Note: {note}" in study for note in result.notes)
    assert len(dataset.load(load_study([tmp_path / "study.yaml"]).data).splits) > 0
    answered = read_to_predict(folder / name)
    assert sorted(row.text for row in answered) == sorted(
        example.text for example in protocol.read(result.options)
    )
    assert not any(row.fault for row in answered)


REFUSALS = {
    "damage_in_a_row.csv": (
        r"damage_in_a_row\.csv:7: not UTF-8 text \(character 19 of the line is the byte 0x96\); "
        r"save it as UTF-8"
    ),
    "empty_labels.csv": (
        r"6 of 24 rows have no label; fill them in, or "
        r"leave them out by --drop-unlabelled"
    ),
    "measurements.csv": r"24 labels in 24 rows are not classes",
    "empty.csv": r"names no columns; the file is empty",
    "blank.csv": r"names no columns; the first line is blank",
    "header_alone.csv": r"has no rows",
    "one_label.csv": r"every row has the label 'cancer' \(24 rows\)",
    "ragged_row_7.csv": r"ragged_row_7\.csv:7: has 2 values, the header has 3 columns",
    "open_quote.csv": r"open_quote\.csv:11: the quoted field that opens in line 11 ",
    "workbook.xlsx": (
        r"a spreadsheet cannot be read; save it as 'CSV UTF-8 "
        r"\(comma delimited\)' and give that file"
    ),
    "workbook_called.csv": (
        r"a spreadsheet cannot be read; save it as 'CSV UTF-8 "
        r"\(comma delimited\)' and give that file"
    ),
    "raw_without_id": r"odd\.txt:1: the first line must be <ID:",
    "raw_without_abstract": r"odd\.txt:1: has no key 'Abstract'",
    "raw_empty_file": r"odd\.txt:1: the first line must be <ID:",
    "raw_same_id": r"odd\.txt:1: id 'R1' is used twice, first at .*1\.txt:1",
    "raw_class_in_folders": (
        r"third: this class folder has no \.txt file; "
        r"its folder of 2020 has some"
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_file_that_cannot_be_right_is_refused_in_a_sentence(
    folder: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, DataError), match=REFUSALS[name]) as info:
        first_study(sketch(str(folder / name), Hints()), "x.yaml", None)
    assert "\n" not in str(info.value)
    assert cli.main(["init", str(folder / name)]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_odd_file_is_tried(folder: Path) -> None:
    elsewhere = {
        "three_rows.csv",
        "no_header_short_texts.csv",
        "symptoms.csv",
        "symptoms_without_names.csv",
        "ori_pqal.json",
        "pqa_labeled.jsonl",
        "pqa_labeled.parquet",
    }
    assert {path.name for path in folder.iterdir()} == {*GOOD, *REFUSALS, *OTHER_ROWS, *elsewhere}
    assert sketch(str(folder / "three_rows.csv"), Hints()).num_rows == 3
    short = sketch(str(folder / "no_header_short_texts.csv"), Hints())
    assert (options(short)["columns"], short.num_rows) == (["column_1", "column_2"], 20)


@pytest.mark.parametrize("name", OTHER_ROWS)
def test_texts_with_another_ending_or_in_folders_below_are_read_and_other_files_are_named(
    folder: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    result = sketch(str(folder / name), Hints())
    assert result.num_rows == OTHER_ROWS[name] == len(dataset.reading.load(result.options).examples)
    if name == "raw_other_files":
        left_out = (
            "2 file(s) are not read, because they are not .txt files in class folders; the first "
            "is notes.txt"
        )
        assert result.notes == (left_out,)
        with caplog.at_level(logging.WARNING):
            list(protocol.read(result.options))
        assert left_out in caplog.text
    else:
        assert result.notes == ()
        assert len(read_to_predict(folder / name)) == OTHER_ROWS[name]


@pytest.mark.parametrize(
    "name",
    [
        "symptoms.csv",
        "symptoms_without_names.csv",
        "ori_pqal.json",
        "pqa_labeled.jsonl",
        "pqa_labeled.parquet",
    ],
)
def test_tables_of_symptoms_and_pubmedqa_are_known(folder: Path, tmp_path: Path, name: str) -> None:
    result = sketch(str(folder / name), Hints())
    path = tmp_path / "study.yaml"
    path.write_text(first_study(result, str(path), None))
    config = load_study([path])
    data = dataset.load(config.data)
    texts = [example.text for example in (*data.train, *data.validation, *data.unlabelled_test())]
    if name.startswith("symptoms"):
        assert (config.data.format.name, config.data.near_duplicate, result.num_rows) == (
            "symptom_table",
            1.0,
            18,
        )
        assert result.labels == {f"Disease {number}": 6 for number in range(3)}
        assert "only equal texts count as duplicates" in path.read_text()
        assert "Patient presents with: itching; skin rash; cough 4" in texts
        with pytest.raises(
            ConfigError, match="--text-column does not apply: the layout symptom_table decides it"
        ):
            sketch(str(folder / name), Hints(text=("Symptom_1",)))
    else:
        assert (config.data.format.name, result.labels) == (
            "pubmedqa",
            {"yes": 8, "no": 8, "maybe": 8},
        )
        assert any(text.endswith("Question: Does drug 4 help?") for text in texts)


def test_a_table_whose_columns_are_no_symptoms_is_a_table(tmp_path: Path) -> None:
    lines = [f"{text(number)},cold,{number % 2}\n".replace(";", "") for number in range(20)]
    (tmp_path / "rows.csv").write_text(
        "note,Symptom_1,disease\n"
        + "".join(f'"{line[:99]}",cold,{"ab"[n % 2]}\n' for n, line in enumerate(lines))
    )
    assert options(sketch(str(tmp_path / "rows.csv"), Hints()))["label"] == "disease"


def test_rows_without_a_label_are_left_out_and_counted(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    source = str(folder / "empty_labels.csv")
    assert cli.main(["init", source, "--drop-unlabelled"]) == 0
    assert "note: 6 rows without a label are left out" in capsys.readouterr().out
    data = dataset.load(load_study([Path("study.yaml")]).data)
    audit = data.audit({}, 512, constant_f1)
    assert (audit.num_rows, audit.num_unlabelled, set(data.set_aside.values())) == (
        18,
        6,
        {"no label"},
    )
    assert audit.render().startswith("18 rows, 6 without a label left out\n")
    read = f"name=delimited,path={source},id=ID,text=[Title_Abstract],label=Label"
    assert cli.main(["data", "convert", read, "name=jsonl,path=refused.jsonl"]) == 1
    assert (
        "empty_labels.csv:5: the label is empty; fill it in, or set drop_unlabelled"
        in capsys.readouterr().err
    )
    assert (
        cli.main(["data", "convert", f"{read},drop_unlabelled=true", "name=jsonl,path=rows.jsonl"])
        == 0
    )
    assert "18 examples" in (output := capsys.readouterr().out)
    assert "6 without a label left out" in output
    with pytest.raises(ConfigError, match="drop_unlabelled true and label null"):
        plugin_options(
            "data.formats", f"name=delimited,path={source},label=null,drop_unlabelled=true"
        )


def test_rows_without_a_label_are_left_out_of_json_lines_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(
            json.dumps({"text": text(n), "label": ["a", "b", None, ""][n % 4]}) + "\n"
            for n in range(16)
        )
    )
    with pytest.raises(DataError, match="8 of 16 rows have no label"):
        sketch(str(path), Hints(label="label"))
    result = sketch(str(path), Hints(label="label", drop_unlabelled=True))
    assert (result.labels, len(dataset.reading.load(result.options).unlabelled_ids)) == (
        {"a": 4, "b": 4},
        8,
    )


@pytest.mark.parametrize("name", ["cp1252.csv", "utf_16.csv", "raw_latin"])
def test_what_is_read_in_an_encoding_is_written_in_it_too(
    folder: Path, tmp_path: Path, name: str
) -> None:
    result = sketch(str(folder / name), Hints()).options
    text_name = "Abstract" if name == "raw_latin" else "Title_Abstract"
    copy = result.model_copy(update={"path": str(tmp_path / name), "text": (text_name,)})
    rows = list(protocol.read(result))
    protocol.write(rows, copy)
    assert sorted(example.text for example in protocol.read(copy)) == sorted(
        " ".join(example.text.split()) for example in rows
    )
    with pytest.raises(DataError, match="cp1252 has no '≥'; leave out"):
        wrong = [replace(rows[0], text="≥ 5")]
        protocol.write(
            wrong, copy.model_copy(update={"path": str(tmp_path / "new"), "encoding": "cp1252"})
        )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", ["id;label\r\n7;Ödem\r\n", "sep=;\r\nid;label\r\n7;Ödem\r\n"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
def test_corrections_that_a_spreadsheet_saved_are_read(
    tmp_path: Path, content: str, encoding: str
) -> None:
    (tmp_path / "labels.csv").write_bytes(content.encode(encoding))
    result = corrections.apply(
        [types.Example("7", "text", ("a",))], tmp_path / "labels.csv", ["Ödem"]
    )
    assert (result.examples[0].labels, result.num_changed) == (("Ödem",), 1)


def test_an_encoding_is_given_by_name_or_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(
        odd_files.table(
            [[str(n), f"Zażółć gęślą {n} " * 9, "ab"[n % 2]] for n in range(20)]
        ).encode("cp1250")
    )
    result = sketch(str(path), Hints(encoding="cp1250"))
    assert "Zażółć" in next(iter(protocol.read(result.options))).text
    with pytest.raises(ConfigError, match="--encoding: 'utf-99' is not known; allowed: utf-8"):
        sketch(str(path), Hints(encoding="utf-99"))
    with pytest.raises(ConfigError, match="encoding: 'utf-99' is not known"):
        plugin_options("data.formats", "name=delimited,path=x.csv,encoding=utf-99")
    with pytest.raises(
        ConfigError, match="--encoding does not apply; the layout pubmedqa is always UTF-8"
    ):
        sketch(str(folder / "ori_pqal.json"), Hints(encoding="cp1252"))
    with pytest.raises(
        DataError,
        match=r"not UTF-8 text .*; data\.format\.encoding cp1252 may read it, or save it as UTF-8",
    ):
        list(
            protocol.read(
                plugin_options(
                    "data.formats",
                    f"name=delimited,path={folder / 'cp1252.csv'},delimiter=;,"
                    "text=[Title_Abstract],label=Label",
                )
            )
        )


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("naïve".encode() * 9 + b"\xe9", "utf-8"),  # one damaged byte
        ("naïve".encode("cp1252"), "cp1252"),
        (b"fever \xff\xfe", "utf-8"),  # no text in cp1252
        (b"a\x81b", "utf-8"),
        (b"plain", "utf-8"),
        (b"", "utf-8"),
        ("words and more".encode("utf-16-be"), "utf-16-be"),
        ("слова".encode("utf-16"), "utf-16"),
        (b"\0" * 100, "utf-8"),
    ],
)
def test_the_encoding_is_guessed_from_the_bytes(content: bytes, encoding: str) -> None:
    assert dialect.guess_encoding([content]) == encoding
    assert (
        dialect.guess_encoding([content[:3], content[3:]]) == encoding or encoding == "utf-16-be"
    )  # which needs its beginning


@pytest.mark.parametrize(
    ("first", "ending", "delimiter"),
    [
        ("a,b;c;d", ".csv", ";"),
        ("a,b;c", ".csv", ","),
        ('"a;b;c",d', ".txt", ","),
        ("words", ".csv", ","),
        ("words", ".txt", None),
        ("SEP=|\r\n", ".csv", "|"),
    ],
)
def test_the_delimiter_is_guessed_from_the_first_line(
    first: str, ending: str, delimiter: str | None
) -> None:
    assert dialect.likely_delimiter(first, ending) == delimiter


@pytest.mark.parametrize(
    ("first", "below", "is_header"),
    [
        (["x", "Label"], [["x", "Label"]], True),  # a name that is known
        (["Befund", "Klasse"], [["a", "b"], ["Befund", "Klasse"]], True),  # two files put together
        (["pain", "heart"], [["fever", "flu"], ["ache", "heart"]], False),
        (["w" * 200, "y"], [["z", "q"]], False),
        (["Was stellen Sie fest? " * 5, "Klasse"], [["a", "b"]], True),
        (["Befund", ""], [["a", ""]], True),
    ],
)
def test_a_first_row_names_columns_unless_it_is_like_those_below(
    first: list[str], below: list[list[str]], is_header: bool
) -> None:
    assert dialect.is_header(first, below) is is_header
    assert dialect.is_header(first, below, [first[0].strip()])
