"""Labels that somebody looked at again: a file of ids and labels, applied as the data is read. The
data's own files stay as they are."""

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

NO_LABEL = "(none)"  # in a cell: of a multi-label task, that there is none
SEPARATOR = "|"  # in a cell, between several labels


@dataclass(frozen=True)
class CorrectedExamples:
    examples: Sequence[Example]
    num_changed: int  # rows whose labels are others than before


def apply(examples: Sequence[Example], path: Path, labels: Sequence[str]) -> CorrectedExamples:
    """`labels` are those that may be given beside the ones that occur."""
    outlines = example_rows.outlines(examples)
    known = {label for example in outlines for label in example.labels} | set(labels)
    found: dict[str, tuple[str, ...]] = {}
    ids = {example.id for example in outlines}
    for where, row_id, given in _read(path):
        if row_id not in ids:
            raise DataError(f"{where}: id {row_id!r} is in no row of the data")
        if row_id in found:
            raise DataError(f"{where}: id {row_id!r} was corrected before, in a line above")
        found[row_id] = _labels(given, known, where)
    rows = {row: found[example.id] for row, example in enumerate(outlines) if example.id in found}
    changed = sum(set(given) != set(outlines[row].labels) for row, given in rows.items())
    return CorrectedExamples(example_rows.with_labels(examples, rows), changed)


def cell(labels: Sequence[str]) -> str:
    """Labels as one field of a delimited file, which `apply` reads back."""
    return SEPARATOR.join(labels) or NO_LABEL


def _read(path: Path) -> Iterator[tuple[str, str, str | list[str]]]:
    """Place, id and label of every row that has a label; the others were looked at and left
    alone."""
    rows = _objects(path) if path.suffix.lower() in (".jsonl", ".ndjson") else _delimited(path)
    for where, row in rows:
        if missing := {"id", "label"} - row.keys():
            raise DataError(
                f"{where}: has no {' and no '.join(sorted(missing))}; a correction has an id and "
                "a label"
            )
        given = row["label"]
        if not isinstance(given, str | list | None):
            raise DataError(
                f"{where}: the label is neither text nor a list of texts, found "
                f"{type(given).__name__}"
            )
        if given is not None and given != "":
            yield where, str(row["id"]), given


def _objects(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as err:
            raise DataError(f"{path}:{number}: not valid JSON: {err}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: is no JSON object")
        yield f"{path}:{number}", row


def _delimited(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """As somebody saved it, in a spreadsheet perhaps."""
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


def _labels(given: str | list[str], known: set[str], where: str) -> tuple[str, ...]:
    if isinstance(given, str):
        given = (
            []
            if given == NO_LABEL
            else [given]
            if given in known
            else [part.strip() for part in given.split(SEPARATOR)]
        )
    for label in given:
        if label not in known:
            raise DataError(
                f"{where}: label {label!r:.60} is no label of the data; "
                f"{suggest(label, sorted(known))}"
            )
    return tuple(dict.fromkeys(given))
