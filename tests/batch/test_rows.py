"""The rows of an input in each format, and rows that cannot be predicted."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medray.batch import inputs, pieces, rows
from medray.batch.rows import InputRow
from medray.batch.shards import TextColumns
from medray.errors import ConfigError, DataError

TEXTS = ["tumour in the lung", "fever after infection", "renal failure of the patient"]


def read(
    place: Path, *, text: tuple[str, ...] = (), row_id: str | None = None, most: int = 1000
) -> list[InputRow]:
    source = inputs.find(str(place))
    columns = inputs.columns(source, inputs.head(source, text), TextColumns(text, row_id))
    return [row for shard in source.shards for row in rows.read(shard, columns, most)]


def table(path: Path) -> Path:
    pq.write_table(pa.table({"pmid": [11, 12, 13], "abstract": TEXTS}), path, row_group_size=2)
    return path


def test_every_form_gives_the_same_rows(tmp_path: Path) -> None:
    records = [{"pmid": number, "abstract": text} for number, text in enumerate(TEXTS, 11)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "rows.jsonl").write_text(lines)
    with gzip.open(tmp_path / "packed.jsonl.gz", "wt") as file:
        file.write(lines)
    for name, mark in (("rows.csv", ","), ("rows.tsv", "\t"), ("rows.psv", "|")):
        (tmp_path / name).write_text(
            f"\ufeffpmid{mark}abstract\n"
            + "".join(f'{number}{mark}"{text}"\n' for number, text in enumerate(TEXTS, 11))
        )
    table(tmp_path / "rows.parquet")
    for path in tmp_path.iterdir():
        result = read(path)
        assert [(row.id, row.text, row.fault, row.is_made) for row in result] == [
            (str(number), text, "", False) for number, text in enumerate(TEXTS, 11)
        ], path.name


def test_a_folder_is_read_file_by_file_and_ids_that_are_missing_are_made_from_file_and_position(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part.jsonl").write_text(
            "\n".join(json.dumps({"text": f"{text} {name}"}) for text in TEXTS)
        )
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "_notes.jsonl").write_text("hidden")
    result = read(tmp_path)
    assert [row.id for row in result] == [
        f"{name}/part.jsonl:{number}" for name in ("a", "b") for number in (1, 2, 3)
    ]
    assert all(row.is_made and row.text for row in result)


def test_files_of_one_text_are_read_as_medray_writes_them_or_whole(tmp_path: Path) -> None:
    for folder in ("raw/cancer", "raw/other", "plain"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "raw/cancer/1.txt").write_text(
        "<ID:S1>\nTitle: Of tumours\nAbstract: One\nResults: more\n"
    )
    (tmp_path / "raw/other/2.txt").write_text("<ID:S2>\nTitle: Fever\n")
    (tmp_path / "plain/note.txt").write_text("The patient\nhas fever.\n")
    assert [(row.id, row.text, row.fault) for row in read(tmp_path / "raw")] == [
        ("S1", "Of tumours One Results: more", ""),
        ("other/2.txt", "", rows.UNREADABLE),
    ]
    assert [row.text for row in read(tmp_path / "raw", text=("Title",))] == ["Of tumours", "Fever"]
    assert [(row.id, row.text, row.is_made) for row in read(tmp_path / "plain")] == [
        ("note.txt", "The patient\nhas fever.", True)
    ]


def test_each_bad_row_says_why_and_the_rows_after_it_are_read(tmp_path: Path) -> None:
    lines = [
        b'{"id": "a", "text": "tumour"}',
        b'{"id": "b", "text": "  "}',
        b"not json",
        b"[1, 2]",
        b'{"id": "c", "text": 5}',
        b'{"id": 1.5, "text": "fever"}',
        b'{"id": "d", "text": "\xff\xfe"}',
        b'{"id": "e", "text": "' + b"x" * 1001 + b'"}',
        b'{"id": "", "text": "renal"}',
        b'{"id": 7, "text": "lung"}',
    ]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    result = read(tmp_path / "rows.jsonl", text=("text",), row_id="id")
    assert [(row.id, row.fault) for row in result] == [
        ("a", ""),
        ("b", rows.EMPTY),
        ("rows.jsonl:3", rows.UNREADABLE),
        ("rows.jsonl:4", rows.UNREADABLE),
        ("c", rows.WRONG_TYPE),
        ("rows.jsonl:6", rows.WRONG_TYPE),
        ("d", rows.UNREADABLE),
        ("e", rows.TOO_LONG),
        ("rows.jsonl:9", ""),
        ("7", ""),
    ]
    assert all(row.reason for row in result if row.fault)
    assert not any(row.text for row in result if row.fault)  # nothing of it is carried on


def test_a_csv_row_that_breaks_the_rules_ends_neither_the_file_nor_the_count(
    tmp_path: Path,
) -> None:
    (tmp_path / "rows.csv").write_text(
        'id,text\na,"two\nlines"\n\nb,one,too many\nc,"quote" behind\nd,fever\n'
    )
    result = read(tmp_path / "rows.csv")
    assert [(row.id, row.text, row.fault) for row in result] == [
        ("a", "two\nlines", ""),
        ("rows.csv:5", "", rows.UNREADABLE),
        ("rows.csv:6", "", rows.UNREADABLE),
        ("d", "fever", ""),
    ]


def test_columns_that_are_not_clear_or_not_there_are_an_error_with_their_names(
    tmp_path: Path,
) -> None:
    (tmp_path / "rows.csv").write_text(
        "key,first,second\n" + "1,tumour of the lung here,fever after infection\n" * 3
    )
    with pytest.raises(
        ConfigError,
        match=(r"has no clear text column among key, first, second; name it by --text-column"),
    ):
        read(tmp_path / "rows.csv")
    with pytest.raises(
        ConfigError,
        match=r"--text-column 'frist' is not a column; .* did you mean 'first'",
    ):
        read(tmp_path / "rows.csv", text=("frist",))
    assert (
        read(tmp_path / "rows.csv", text=("first", "second"))[0].text
        == "tumour of the lung here fever after infection"
    )


def test_what_is_no_input_is_an_error_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "mixed").mkdir()
    for name in ("rows.csv", "rows.jsonl"):
        (tmp_path / "mixed" / name).write_text("")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="does not exist; name a file or folder"):
        inputs.find(str(tmp_path / "none.csv"))
    with pytest.raises(DataError, match=r"files of several kinds \(csv, jsonl\)"):
        inputs.find(str(tmp_path / "mixed"))
    with pytest.raises(DataError, match=r"broken\.parquet: cannot be read as parquet"):
        read(tmp_path / "broken.parquet")
    with pytest.raises(DataError, match="has no rows"):
        read(tmp_path / "mixed" / "rows.csv")


def test_an_input_is_another_one_once_a_file_changed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "tumour"}\n')
    before = inputs.find(str(path)).fingerprint
    assert inputs.find(str(path)).fingerprint == before
    path.write_text('{"text": "tumour"}\n' * 2)
    assert inputs.find(str(path)).fingerprint != before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("semicolons.csv", "pmid;abstract\n11;tumour, lung\n12;fever\n"),
        ("pipes.csv", "pmid|abstract\n11|tumour, lung\n12|fever\n"),
        ("table.txt", "pmid|abstract\n11|tumour, lung\n12|fever\n"),
        ("sep.csv", "sep=;\r\npmid;abstract\r\n11;tumour, lung\r\n12;fever\r\n"),
        ("returns.csv", 'pmid,abstract\r11,"tumour, lung"\r12,fever\r'),
        ("header.csv", '"pmid","the\nabstract"\n11,"tumour, lung"\n12,fever\n'),
        ("packed.csv.gz", "pmid;abstract\n11;tumour, lung\n12;fever\n"),
    ],
)
def test_a_table_is_read_whatever_separates_its_columns_and_rows(
    tmp_path: Path, name: str, content: str
) -> None:
    raw = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    names = ("the abstract",) if name == "header.csv" else ("abstract",)
    assert [
        (row.id, row.text, row.fault) for row in read(tmp_path / name, text=names, row_id="pmid")
    ] == [
        ("11", "tumour, lung", ""),
        ("12", "fever", ""),
    ]


@pytest.mark.parametrize(
    ("encoding", "result"),
    [("utf-8", "utf-8"), ("utf-8-sig", "utf-8"), ("utf-16", "utf-16"), ("cp1252", "cp1252")],
)
def test_the_beginning_of_an_input_tells_its_encoding(
    tmp_path: Path, encoding: str, result: str
) -> None:
    (tmp_path / "rows.csv").write_bytes(
        "pmid,abstract\r\n11,cœliac naïve – disease\r\n".encode(encoding)
    )
    (tmp_path / "note.txt").write_bytes("cœliac naïve – disease\r\n".encode(encoding))
    assert inputs.find(str(tmp_path / "rows.csv")).encoding == result
    for name in ("rows.csv", "note.txt"):
        assert [row.text for row in read(tmp_path / name)] == ["cœliac naïve – disease"], name
    source = inputs.find(str(tmp_path / "rows.csv"), "latin-1", "|")
    assert (source.encoding, source.shards[0].encoding, source.shards[0].delimiter) == (
        "latin-1",
        "latin-1",
        "|",
    )
    table(tmp_path / "rows.parquet")
    with pytest.raises(
        ConfigError,
        match="--encoding and --delimiter do not apply: parquet files have one encoding",
    ):
        inputs.find(str(tmp_path / "rows.parquet"), "latin-1")


def test_a_table_without_a_header_loses_no_row_and_a_name_that_is_given_makes_one(
    tmp_path: Path,
) -> None:
    (tmp_path / "rows.csv").write_text(
        "".join(f"{number},{'a note of a patient ' * 12}{number}\n" for number in range(9))
    )
    assert [row.text.split()[-1] for row in read(tmp_path / "rows.csv")] == [
        str(number) for number in range(9)
    ]
    assert len(read(tmp_path / "rows.csv", text=("column_2",))) == 9
    (tmp_path / "short.csv").write_text("Befund,Klasse\nfieber,a\nschmerz,Klasse\n")
    assert [row.text for row in read(tmp_path / "short.csv", text=("Befund",))] == [
        "fieber",
        "schmerz",
    ]


def test_a_text_with_commas_is_no_table_and_a_spreadsheet_says_how_to_save_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "note.txt").write_text("Notes, of one patient.\nFever, and pain.\n")
    (result,) = read(tmp_path / "note.txt")
    assert result.text == "Notes, of one patient.\nFever, and pain."
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    with pytest.raises(
        DataError, match=r"rows\.xlsx: a spreadsheet cannot be read; save it as 'CSV UTF-8"
    ):
        inputs.find(str(tmp_path / "rows.xlsx"))


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_second_file_without_the_column_is_refused_by_the_scan_before_anything_is_answered(
    tmp_path: Path, form: str
) -> None:
    for name, column in (("a", "text"), ("b", "words")):
        path = tmp_path / f"{name}.{form}"
        if form == "csv":
            path.write_text(f"id,{column}\n{name},fever\n")
        elif form == "jsonl":
            path.write_text(json.dumps({"id": name, column: "fever"}) + "\n")
        else:
            pq.write_table(pa.table({"id": [name], column: ["fever"]}), path)
    first, second = inputs.find(str(tmp_path)).shards
    assert len(pieces.scan(first, TextColumns(("text",), "id"), 1000).ids) == 1
    with pytest.raises(DataError, match=rf"b\.{form}: has no column 'text'; allowed: id, words"):
        pieces.scan(second, TextColumns(("text",), "id"), 1000)


def test_a_scan_counts_the_rows_that_cannot_be_answered(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,text\na,fever\nb,\nc,one,too many\n")
    (shard,) = inputs.find(str(tmp_path / "rows.csv")).shards
    scan = pieces.scan(shard, TextColumns(("text",), "id"), 1000)
    assert (len(scan.ids), scan.num_bad, scan.example) == (3, 2, "rows.csv:3: the text is empty")
