"""Files as people save them. `python tests/support/odd_files.py FOLDER` writes each, for a trial by
hand with `medray init` and `medray predict`."""

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

HEADER = ("ID", "Title_Abstract", "Label")
NUM_ROWS = 24


def text(number: int) -> str:
    """Return a few hundred characters, with letters whose bytes differ between cp1252 and UTF-8."""
    return (
        f"Étude {number} – a naïve comparison; of {number * 7} patients, {number * 5} had the "
        "finding. "
    ) + "It was seen again. " * 9


def rows(
    label: Callable[[int], str] = lambda number: ("cancer", "other")[number % 2],
) -> list[list[str]]:
    return [[f"P{number}", text(number), label(number)] for number in range(NUM_ROWS)]


def table(
    cells: Sequence[Sequence[str]],
    delimiter: str = ",",
    header: Sequence[str] | None = HEADER,
    end: str = "\n",
) -> str:
    content = io.StringIO(newline="")
    csv.writer(content, delimiter=delimiter, lineterminator=end).writerows(
        [*([header] if header else []), *cells]
    )
    return content.getvalue()


def with_row(number: int, row: list[str]) -> list[list[str]]:
    return [*(others := rows())[:number], row, *others[number + 1 :]]


def raw(number: int) -> str:
    return f"<ID:R{number}>\nTitle: Study {number}\nAbstract: {text(number)}\n"


SYMPTOMS = [f"Disease {number % 3},itching,skin_rash, cough_{number},\n" for number in range(18)]
PUBMEDQA = {
    str(number): {
        "QUESTION": f"Does drug {number} help?",
        "CONTEXTS": [text(number)],
        "final_decision": ("yes", "no", "maybe")[number % 3],
    }
    for number in range(NUM_ROWS)
}
HUB = [
    {
        "pubid": int(pmid),
        "question": each["QUESTION"],
        "context": {"contexts": each["CONTEXTS"]},
        "final_decision": each["final_decision"],
    }
    for pmid, each in PUBMEDQA.items()
]
LONG = "long words " * 100_000  # over a megabyte on a line
CONTENTS: dict[str, str | bytes] = {
    "commas.csv": table(rows()),
    "excel.csv": ("\ufeff" + table(rows(), ";", end="\r\n")).encode(),
    "semicolons.csv": table(rows(), ";"),
    "tabs.csv": table(rows(), "\t"),
    "pipes.txt": table(rows(), "|"),
    "cp1252.csv": table(rows(), ";").encode("cp1252"),
    "utf_16.csv": table(rows(), "\t", end="\r\n").encode("utf-16"),
    "utf_16_without_mark.csv": table(rows(), end="\r\n").encode("utf-16-le"),
    "damage_in_a_row.csv": table(rows())
    .encode()
    .replace("naïve comparison; of 35".encode(), b"na\x96ve comparison; of 35"),
    "empty_labels.csv": table(rows(lambda number: ("cancer", "other", "third", "")[number % 4])),
    "na_labels.csv": table(rows(lambda number: ("cancer", "NA", "nan")[number % 3])),
    "same_id_twice.csv": table(with_row(3, ["P1", text(3), "other"])),
    "missing_id.csv": table(with_row(3, ["", text(3), "other"])),
    "zero_and_one.csv": table(rows(lambda number: str(number % 2))),
    "one_and_one_point_zero.csv": table(rows(lambda number: ("0", "1", "1.0")[number % 3])),
    "two_spellings.csv": table(rows(lambda number: ("cancer", "CANCER", "other")[number % 3])),
    "measurements.csv": table(rows(lambda number: f"{number / 7:.3f}")),
    "a_long_line.csv": table(with_row(3, ["P3", LONG, "other"])),
    "five_long_lines.csv": table(
        [[row[0], LONG if number < 5 else row[1], row[2]] for number, row in enumerate(rows())]
    ),
    "empty.csv": "",
    "blank.csv": "\n\n\n",
    "header_alone.csv": table([]),
    "one_label.csv": table(rows(lambda _: "cancer")),
    "three_rows.csv": table(rows()[:3]),
    "ragged_row_7.csv": table(with_row(5, ["P5", text(5)])),
    "open_quote.csv": table(rows()[:9])
    + 'P9,"never closed,other\n'
    + table(rows()[10:], header=None),
    "carriage_returns.csv": table(rows(), ";", end="\r"),
    "line_break_in_header.csv": table(
        rows(), header=("ID", "Title\nAbstract", "Label\n(0 = no, 1 = yes)")
    ),
    "no_header.csv": table(rows(), header=None),
    "no_header_short_texts.csv": table(
        [[f"fever and pain on day {n}", ("flu", "heart")[n % 2]] for n in range(20)], header=None
    ),
    "sep.csv": "sep=;\r\n" + table(rows(), ";", end="\r\n"),
    "sep_in_quotes.csv": '"sep=;"\r\n' + table(rows(), ";", end="\r\n"),
    "symptoms.csv": "Disease,Symptom_1,Symptom_2,Symptom_3,Symptom_4\n" + "".join(SYMPTOMS),
    "symptoms_without_names.csv": ",,,,\n" + "".join(SYMPTOMS),
    "ori_pqal.json": json.dumps(PUBMEDQA),
    "pqa_labeled.jsonl": "".join(json.dumps(row) + "\n" for row in HUB),
    "workbook.xlsx": b"PK\x03\x04\x14\x00\x06\x00 a packed workbook",
    "workbook_called.csv": b"PK\x03\x04\x14\x00\x06\x00\xff\xfe a packed workbook",
}
FOLDERS: dict[str, dict[str, str | bytes]] = {
    "raw_as_meant": {},
    "raw_capital_ending": {"yes/capital.TXT": raw(90)},
    "raw_folder_below": {"no/of 2020/below.txt": raw(91)},
    "raw_other_files": {
        "yes/scan.pdf": b"%PDF",
        "notes.txt": "of the whole set",
        ".DS_Store": b"\0",
    },
    "raw_without_id": {"yes/odd.txt": "Title: a\nAbstract: b\n"},
    "raw_without_abstract": {"yes/odd.txt": "<ID:X>\nTitle: a\n"},
    "raw_empty_file": {"yes/odd.txt": ""},
    "raw_same_id": {"yes/odd.txt": raw(1)},
    "raw_class_in_folders": {"third/of 2020/1.txt": raw(92), "third/of 2021/1.txt": raw(93)},
}


def build(folder: Path) -> None:
    for name, content in CONTENTS.items():
        write(folder / name, content)
    for name, odd in FOLDERS.items():
        for number in range(NUM_ROWS):
            write(folder / name / ("yes", "no")[number % 2] / f"{number}.txt", raw(number))
        for path, content in odd.items():
            write(folder / name / path, content)
    for name, records in (
        ("table.parquet", [dict(zip(HEADER, row, strict=True)) for row in rows()]),
        ("pqa_labeled.parquet", HUB),
    ):
        pq.write_table(pa.Table.from_pylist(records), folder / name)
    for number in range(NUM_ROWS):
        for name, content in (
            ("raw_latin", raw(number).encode("cp1252")),
            ("raw_returns", raw(number).replace("\n", "\r")),
        ):
            write(folder / name / ("yes", "no")[number % 2] / f"{number}.txt", content)


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


if __name__ == "__main__":
    build(Path(sys.argv[1]))
