"""Hostile or broken files of rows: bounded memory, a sentence with a place, and no row lost
uncounted."""

import csv
import gzip
import json
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medray.batch import inputs, pieces, rows
from medray.batch import output as output_files
from medray.batch.output import BatchOutput
from medray.batch.rows import InputRow
from medray.batch.shards import TextColumns
from medray.data import corrections
from medray.data.formats import delimited, jsonl, pubtator, spans, symptom_table
from medray.data.formats import tables as tables_format
from medray.errors import ArtifactError, DataError, MedrayError
from medray.registry.predictions import read_predictions
from medray.storage.store import open_store
from medray.text import csv_text
from medray.types import Example

PATIENT = "Jane Canary Roe, born 1950, MRN 4711"  # what no message may repeat
COLUMNS = TextColumns(("text",), "id")


def read(path: Path, columns: TextColumns = COLUMNS, most: int = 1_000_000) -> list[InputRow]:
    source = inputs.find(str(path))
    return [row for shard in source.shards for row in rows.read(shard, columns, most)]


def bad(rows: list[InputRow]) -> list[InputRow]:
    return [row for row in rows if row.fault]


def file_with_open_quote(path: Path, closing: str, num_rows: int = 5000) -> Path:
    """A file in which a quote opens and takes in the rows behind it."""
    before = "".join(f"a{number},good row {number}\n" for number in range(num_rows))
    path.write_text(f'id,text\n{before}bad,"opened\n' + before.replace("a", "b") + closing)
    return path


# A quote that never closes


@pytest.mark.parametrize(
    ("closing", "reason"),
    [
        ("", "does not close"),
        ('z,"x"\n', "goes on where its quote closes"),
        ('z,a disk of 5"\n', "holds 5000 lines that are rows themselves"),
    ],
)
def test_the_rows_that_an_open_quote_takes_in_are_counted(
    tmp_path: Path, closing: str, reason: str
) -> None:
    path = file_with_open_quote(tmp_path / "lost.csv", closing)
    rows = read(path)
    assert len(rows) >= 10_000
    assert [row.text for row in rows[:5000]] == [f"good row {number}" for number in range(5000)]
    assert len(bad(rows)) == 5001 + bool(closing)
    assert {row.reason for row in bad(rows)} == {
        f"the quoted field that opens in line 5002 {reason}"
    }
    assert [row.where for row in bad(rows)][:2] == ["lost.csv:5002", "lost.csv:5003"]
    assert len(pieces.scan(inputs.find(str(path)).shards[0], COLUMNS, 1000).ids) == len(
        rows
    )  # what --max-bad is a share of


@pytest.mark.parametrize("closing", ["", 'z,"x"\n', 'z,a disk of 5"\n'])
def test_study_data_with_an_open_quote_is_refused_with_its_line(
    tmp_path: Path, closing: str
) -> None:
    path = file_with_open_quote(tmp_path / "lost.csv", closing, 300)
    options = delimited.Options(
        name="delimited", path=str(path), text=("text",), label=None, id="id"
    )
    with pytest.raises(
        DataError, match=r"lost\.csv:302: the quoted field that opens in line 302 "
    ) as error:
        list(delimited.read(options))
    assert "good row" not in str(error.value)
    (tmp_path / "fixed.csv").write_text('id,label\na1,x\na2,"opened\n' + "a3,x\n" * 200 + closing)
    with pytest.raises(DataError, match=r"fixed\.csv:3: the quoted field that opens in line 3 "):
        corrections.apply([Example("a1", "a", ("x",))], tmp_path / "fixed.csv", ())
    (tmp_path / "table.csv").write_text(
        'Disease,Symptom_1\nflu,fever\ncold,"cough\n' + "flu,fever\n" * 50
    )
    with pytest.raises(
        DataError, match=r"table\.csv:3: the quoted field that opens in line 3 does not close"
    ):
        list(
            symptom_table.read(
                symptom_table.Options(name="symptom_table", path=str(tmp_path / "table.csv"))
            )
        )


def test_an_open_quote_takes_in_no_more_lines_than_a_row_may_have(tmp_path: Path) -> None:
    path = file_with_open_quote(tmp_path / "lost.csv", "", 30_000)
    rows = read(path)
    assert len(bad(rows)) == csv_text.MOST_LINES + 1
    assert sum(not row.fault for row in rows) == 60_000 - csv_text.MOST_LINES


def test_long_texts_in_quotes_are_read_as_before(tmp_path: Path) -> None:
    note = "\n".join(
        f"Day {day}: no fever, no pain, wound dry.\n" for day in range(1500)
    )  # 3,000 lines, 60 kB
    labs = "\n".join(
        ["Results", *(f"value {number}, 4.{number} mmol/l" for number in range(40))]
    )  # rows of two values, nearly
    output = 'He said: "no pain", and left.'
    texts = [note, labs, output, "long " * 100_000]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["id", "text"], *([f"r{number}", text] for number, text in enumerate(texts))]
        )
    assert [(row.text, row.fault) for row in read(tmp_path / "rows.csv")] == [
        (text.strip(), "") for text in texts
    ]
    options = delimited.Options(
        name="delimited", path=str(tmp_path / "rows.csv"), text=("text",), label=None, id="id"
    )
    assert [example.text for example in delimited.read(options)] == [text.strip() for text in texts]


def test_a_list_in_a_text_is_no_table(tmp_path: Path) -> None:
    labs = "\n".join(
        ["Results", *(f"value {number}, 4.{number}, mmol/l" for number in range(40)), "end"]
    )
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["id", "text", "label"], ["r1", labs, "a"], ["r2", "fever", "b"]]
        )
    assert [(row.text, row.fault) for row in read(tmp_path / "rows.csv")] == [
        (labs, ""),
        ("fever", ""),
    ]


@pytest.mark.real
def test_real_files_lose_no_row(real_data: Path) -> None:
    rows = read(real_data / "abstracts" / "medical_abstracts.csv", TextColumns(("abstract",), None))
    assert (len(rows), bad(rows)) == (2305, [])


# What is packed


def test_a_packed_line_of_a_quarter_of_a_gigabyte_does_not_fill_memory(tmp_path: Path) -> None:
    for name, begin in (
        ("a.jsonl.gz", b'{"id":"1","text":"'),
        ("b.csv.gz", b'id,text\n1,"'),
        ("c.txt.gz", b""),
    ):
        with gzip.open(tmp_path / name, "wb", 1) as file:
            file.write(begin)
            for _ in range(250):
                file.write(b"a" * 1_000_000)
            file.write(b'"}\n{"id":"2","text":"fever"}\n' if b"{" in begin else b'"\n2,fever\n')
    table = {
        "id": [1] * 500,
        "text": pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), ["a" * 1_100_000]),
    }
    pq.write_table(pa.table(table), tmp_path / "d.parquet", compression="zstd")
    script = """
import sys
from pathlib import Path
from medray.batch import inputs, rows
from medray.batch.shards import TextColumns
for path in sys.argv[1:]:
    source = inputs.find(path)
    columns = TextColumns(("text",), "id") if source.form != "texts" else TextColumns()
    inputs.head(source)
    for row in list(rows.read(source.shards[0], columns, 1_000_000))[:2]:
        print(row.fault or row.text)
    # rusage has that of pytest
    print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10)
"""
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    process = subprocess.run(
        [sys.executable, "-c", script, *paths],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    output = process.stdout.splitlines()
    too_long = rows.TOO_LONG
    assert [output[0], output[1], output[3], output[4], output[6], output[8]] == [
        too_long,
        "fever",
        rows.UNREADABLE,
        "fever",
        too_long,
        too_long,
    ]
    assert int(output[-1]) < 500, (
        output
    )  # MiB, libraries included; 1,600 where each whole line becomes a text


def test_a_packed_file_that_is_damaged_is_a_sentence(tmp_path: Path) -> None:
    whole = gzip.compress(
        "".join(
            json.dumps({"id": str(n), "text": f"text {random.Random(n).random()}"}) + "\n"
            for n in range(9999)
        ).encode()
    )
    (tmp_path / "half.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"half\.jsonl\.gz: cannot be read to its end: "):
        read(tmp_path / "half.jsonl.gz")


def test_a_line_without_end_is_refused_in_study_data() -> None:
    with pytest.raises(
        DataError, match=r"/dev/zero:1: the line is longer than 16777216 characters"
    ):
        list(jsonl.read(jsonl.Options(name="jsonl", path="/dev/zero")))


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_text_that_a_table_keeps_once_is_not_in_memory_for_every_row(
    tmp_path: Path, ending: str
) -> None:
    path, text = tmp_path / f"rows.{ending}", "a" * 3_000_000
    table = pa.table(
        {"text": pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), [text])}
    )
    if ending == "parquet":
        pq.write_table(table, path, compression="zstd")
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
            file.write_table(table)
    tracemalloc.start()
    options = tables_format.Options(name="tables", path=str(path), label=None)
    num_rows = sum(len(example.text) == len(text) for example in tables_format.read(options))
    peak = tracemalloc.get_traced_memory()[1] + pa.default_memory_pool().max_memory()
    tracemalloc.stop()
    assert num_rows == 500
    assert peak < 1_000_000_000  # all at once, they would be 1.5 GB as texts alone


# What messages repeat


def message(run: Callable[[], Any]) -> str:
    with pytest.raises(MedrayError) as error:
        run()
    return str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        f"<ID: {PATIENT}\nTitle: x\n",
        f"<ID:7>\n{PATIENT} has carcinoma\n",
        "<ID:7>\nTitle: x\nJane Canary: a\nJane Canary: b\n",
        "<ID:7>\nTitle: x\nJane Canary: a\n",
    ],
)
def test_reasons_of_texts_set_aside_name_the_place_and_the_kind_only(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "note.txt").write_text(content)
    (row,) = read(tmp_path, TextColumns())
    assert row.fault == rows.UNREADABLE
    assert row.reason.startswith("note.txt:")
    assert not any(part in row.reason for part in ("Canary", "1950", "4711"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", f'id,text\n1,"{PATIENT}"x\n'),
        ("rows.csv", f"id,text\n1,{PATIENT}\n"),
        ("rows.csv", f'id,text\n1,"{PATIENT}\n'),
        ("rows.jsonl", f'{{"id": "1", "text": "{PATIENT}"\n'),
        ("rows.jsonl", f'["{PATIENT}"]\n'),
        ("rows.jsonl", f'{{"id": ["{PATIENT}"], "text": "a"}}\n'),
        ("rows.jsonl", f'{{"id": "1", "text": ["{PATIENT}"]}}\n'),
    ],
)
def test_reasons_of_rows_set_aside_hold_no_text(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    row = read(tmp_path / name)[0]
    assert row.fault
    assert not any(part in f"{row.id} {row.reason}" for part in ("Canary", "1950", "4711"))


def test_errors_of_study_data_hold_no_text(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    output = []
    for content in (
        f"1|t|a\n1|a|b\n{PATIENT}\t0\t1\ta\tD\n",
        f"{PATIENT}\n",
        f"1|t|a\n{PATIENT}|a|b\n",
        f"1|t|a\n1|a|b\n1\t{PATIENT}\t1\ta\tD\n",
    ):
        path.write_text(content)
        output.append(
            message(lambda: list(pubtator.read(pubtator.Options(name="pubtator", path=str(path)))))
        )
    for mention in (
        {"start": 0, "end": 4, "text": PATIENT},
        {"start": PATIENT, "end": 4},
        {"start": 4, "end": 12},
    ):
        path.write_text(json.dumps({"text": PATIENT, "mentions": [mention]}) + "\n")
        output.append(
            message(lambda: list(spans.read(spans.Options(name="spans", path=str(path)))))
        )
    path.write_text(json.dumps({"text": "a", "label": {"name": PATIENT}}) + "\n")
    output.append(message(lambda: list(jsonl.read(jsonl.Options(name="jsonl", path=str(path))))))
    assert not any(part in line for line in output for part in ("Canary", "1950", "4711")), output


BREAKS = "r\u2028\x85\x0b\x1c1"  # where Python ends a line of a text, and JSON does not


def test_an_id_with_a_line_separator_of_unicode_does_not_cut_what_medray_stores(
    tmp_path: Path,
) -> None:
    output = BatchOutput(open_store(str(tmp_path / "out")), "jsonl")
    output.write(
        0,
        0,
        pa.table({"id": []}),
        [InputRow(BREAKS, "", "rows.jsonl:1", fault=rows.EMPTY, reason="the text is empty")],
        0,
    )
    assert [line["id"] for line in output.set_aside()] == [BREAKS]
    line = json.dumps(
        {"row_id": BREAKS, "labels": ["a"], "probabilities": [1.0]}, ensure_ascii=False
    )
    (tmp_path / "predictions.jsonl").write_text(f"{line}\n", encoding="utf-8")
    assert [prediction.row_id for prediction in read_predictions(tmp_path)] == [BREAKS]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("_run.json", b"{"),
        ("_run.json", b"[]"),
        ("_run.json", b"\xff"),
        ("_summary.json", b"["),
        ("_done/copy", b""),
        ("_done/0-0.1", b""),
    ],
)
def test_a_file_of_an_output_that_was_damaged_is_one_sentence(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    output = BatchOutput(open_store(str(tmp_path / "out")), "jsonl")
    record = output_files.Record.model_construct(piece_rows=1)
    readers: dict[str, Callable[[], object]] = {
        "_run.json": lambda: output.begin(record, resume=True),
        "_summary.json": output.summary,
    }
    with pytest.raises(
        ArtifactError,
        match=r": is not a file of this medray; restore it, or choose another --output$",
    ):
        readers.get(name, output.notes)()


def test_a_line_about_rows_that_were_set_aside_that_was_damaged_is_one_sentence(
    tmp_path: Path,
) -> None:
    (tmp_path / "_set_aside").mkdir()
    (tmp_path / "_set_aside" / "part-00000-000000.jsonl").write_text('{"id": "Canary')
    with pytest.raises(
        ArtifactError, match=r"part-00000-000000\.jsonl: is not a file of this medray"
    ) as refusal:
        list(BatchOutput(open_store(str(tmp_path)), "jsonl").set_aside())
    assert "Canary" not in str(refusal.value)


@pytest.mark.parametrize("number", ["²", "9" * 5000])
def test_a_number_that_is_none_is_an_error_of_its_line(tmp_path: Path, number: str) -> None:
    (tmp_path / "rows.txt").write_text(f"1|t|a\n1|a|b\n1\t{number}\t1\ta\tD\n")
    with pytest.raises(DataError, match=r"rows\.txt:3: start and end must be whole numbers"):
        list(pubtator.read(pubtator.Options(name="pubtator", path=str(tmp_path / "rows.txt"))))


# Cells that a spreadsheet would run
