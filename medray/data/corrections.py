"""Corrections of labels: a file of ids and labels, applied when the data is read. The data's own
files stay unchanged."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from medray.data import examples as example_rows
from medray.data.formats.base.parsing import csv_rows, guess_encoding, lines
from medray.errors import DataError, suggest
from medray.text.csv_text import CsvRow, restore_cell
from medray.text.dialect import likely_delimiter
from medray.types import Example

NO_LABEL = "(none)"  # the cell of a multi-label row without labels
SEPARATOR = "|"  # between the labels of a cell


@dataclass(frozen=True)
class CorrectedExamples:
    examples: Sequence[Example]
    num_changed: int  # rows whose labels differ from the data's


def apply(examples: Sequence[Example], path: Path, labels: Sequence[str]) -> CorrectedExamples:
    """Replace labels by those of a file. It may use the labels that occur in the data and
    `labels`."""
    if examples and examples[0].questions:
        raise DataError(
            f"{path}: corrects labels, and the rows have answers to questions; correct these in "
            "the data"
        )
    outlines = example_rows.outlines(examples)
    valid_labels = {label for example in outlines for label in example.labels} | set(labels)
    labels_by_id: dict[str, tuple[str, ...]] = {}
    ids = {example.id for example in outlines}
    for place, row_id, row_labels in _read(path):
        if row_id not in ids:
            raise DataError(f"{place}: no row of the data has the id {row_id!r}")
        if row_id in labels_by_id:
            raise DataError(f"{place}: a line above corrects the id {row_id!r} already")
        labels_by_id[row_id] = _labels(row_labels, valid_labels, place)
    rows = {
        row: labels_by_id[example.id]
        for row, example in enumerate(outlines)
        if example.id in labels_by_id
    }
    num_changed = sum(set(new) != set(outlines[row].labels) for row, new in rows.items())
    return CorrectedExamples(example_rows.with_labels(examples, rows), num_changed)


def cell(labels: Sequence[str]) -> str:
    """Return labels as one cell of a delimited file, which `apply` can read."""
    return SEPARATOR.join(labels) or NO_LABEL


def _read(path: Path) -> Iterator[tuple[str, str, str | list[str]]]:
    """Yield place, id and label of every row that has a label. A row without one confirms the
    data's label."""
    rows = _objects(path) if path.suffix.lower() in (".jsonl", ".ndjson") else _table_rows(path)
    for where, row in rows:
        if missing := {"id", "label"} - row.keys():
            raise DataError(
                f"{where}: has no {' and no '.join(sorted(missing))}; a correction needs an id and "
                "a label"
            )
        label = row["label"]
        if not isinstance(label, str | list | None):
            raise DataError(
                f"{where}: the label must be text or a list of texts, found {type(label).__name__}"
            )
        if label is not None and label != "":
            yield where, str(row["id"]), label


def _objects(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as err:
            raise DataError(f"{path}:{number}: not valid JSON: {err}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: is not a JSON object")
        yield f"{path}:{number}", row


def _table_rows(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Read a delimited file, whose encoding and delimiter are guessed: a spreadsheet may have
    saved it."""
    encoding = guess_encoding(path) if path.is_file() else "utf-8"
    first = next(lines(path, encoding=encoding, newline=""), "")
    rows = csv_rows(path, likely_delimiter(first, path.suffix) or ",", encoding)
    header = [name.strip() for name in next(rows, CsvRow(1, 0, [])).values]
    for row in rows:
        if any(row.values):
            cells = [restore_cell(value).strip() for value in row.values]
            yield (
                f"{path}:{row.line}",
                dict(zip_longest(header, cells[: len(header)], fillvalue="")),
            )


def _labels(value: str | list[str], valid_labels: set[str], where: str) -> tuple[str, ...]:
    if isinstance(value, list):
        labels = value
    elif value == NO_LABEL:
        labels = []
    elif value in valid_labels:
        labels = [value]
    else:
        labels = [part.strip() for part in value.split(SEPARATOR)]
    for label in labels:
        if label not in valid_labels:
            raise DataError(
                f"{where}: the data has no label {label!r:.60}; "
                f"{suggest(label, sorted(valid_labels))}"
            )
    return tuple(dict.fromkeys(labels))
