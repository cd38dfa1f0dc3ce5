"""Comma, tab, pipe or semicolon separated files with a header, read as a stream."""

import csv
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from medray.data.base import Example
from medray.data.formats.base import FormatOptions, check_label, lines, missing_columns, missing_file, refuse_existing
from medray.errors import DataError

_BY_ENDING = {".tsv": "\t", ".tab": "\t", ".psv": "|"}


class Options(FormatOptions):
    name: Literal["delimited"]
    text: tuple[str, ...] = Field(("text",), min_length=1, description="columns that make the text, joined by a blank")
    label: str | None = Field("label", description="column of the label; null for unlabelled rows")
    label_separator: str | None = Field(None, min_length=1, description="splits the label column into several labels")
    id: str | None = Field(None, description="column of the row's id; the row's number where not given")
    split: str | None = Field(None, description="column that says train, validation or test")
    delimiter: Literal[",", "\t", "|", ";"] | None = Field(None, description="tab for .tsv, pipe for .psv, else comma")


def read(options: Options) -> Iterator[Example]:
    path = Path(options.path)
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    rows = csv.reader(lines(path), delimiter=_delimiter(options), strict=True)
    try:
        columns = next(rows, None)
        if columns is None:
            raise DataError(f"{path}:1: the file is empty; its first line must name the columns")
        wrong = missing_columns(f"{path}:1", _wanted(options), columns)
        if wrong:
            raise DataError("; ".join(wrong))
        at = rows.line_num + 1
        for number, row in enumerate(rows, 1):
            if row:
                yield _example(number, row, columns, options, f"{path}:{at}")
            at = rows.line_num + 1
    except csv.Error as err:
        raise DataError(f"{path}:{rows.line_num}: {err}") from None


def write(examples: Iterable[Example], options: Options) -> None:
    path = Path(options.path)
    rows = list(examples)
    refuse_existing(path)
    metadata = sorted({key for example in rows for key in example.metadata})
    header = [
        options.id or "id",
        options.text[-1],
        *([options.label] if options.label else []),
        *([options.split] if options.split else []),
        *metadata,
    ]
    if len(set(header)) != len(header):
        raise DataError(f"{path}: two columns would have one name: {', '.join(header)}")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=_delimiter(options), lineterminator="\n")
        writer.writerow(header)
        for example in rows:
            labels = [_join(example, options)] if options.label else []
            split = [example.split or ""] if options.split else []
            writer.writerow([example.id, example.text, *labels, *split, *(example.metadata.get(key, "") for key in metadata)])


def check(options: Options) -> list[str]:
    if wrong := missing_file(options.path):
        return wrong
    try:
        first = next(read(options), None)
    except DataError as err:
        return [str(err)]
    return [] if first else [f"{options.path}: has no rows below its header"]


def _delimiter(options: Options) -> str:
    return options.delimiter or _BY_ENDING.get(Path(options.path).suffix.lower(), ",")


def _wanted(options: Options) -> dict[str, str]:
    named = {"label": options.label, "id": options.id, "split": options.split}
    return {f"text.{number}": column for number, column in enumerate(options.text)} | {key: value for key, value in named.items() if value}


def _example(number: int, row: list[str], columns: list[str], options: Options, where: str) -> Example:
    if len(row) != len(columns):
        raise DataError(f"{where}: has {len(row)} values, the header has {len(columns)} columns")
    values = dict(zip(columns, row, strict=True))
    labels: tuple[str, ...] = ()
    if options.label:
        found = values[options.label].split(options.label_separator) if options.label_separator else [values[options.label]]
        several = bool(options.label_separator)  # then a row may have none
        labels = tuple(check_label(label.strip(), options.labels, where) for label in found if label.strip() or not several)
    used = set(_wanted(options).values())
    metadata = {key: value for key, value in values.items() if key not in used}
    text = " ".join(filter(None, (values[column].strip() for column in options.text)))
    split = values[options.split].strip() or None if options.split else None
    return Example(values[options.id].strip() if options.id else str(number), text, labels, split, metadata, where)


def _join(example: Example, options: Options) -> str:
    if options.label_separator is None and len(example.labels) > 1:
        raise DataError(f"{example.where or example.id}: has {len(example.labels)} labels; label_separator is needed to write them")
    for label in example.labels:
        if options.label_separator and options.label_separator in label:
            raise DataError(f"{example.where or example.id}: label {label!r} holds the label_separator {options.label_separator!r}")
    return (options.label_separator or "").join(example.labels)
