"""Files whose values are separated by comma, tab, pipe or semicolon, read as a stream. Blank rows
and empty metadata are skipped."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from medray.data.formats.base.parsing import (
    check_id,
    check_label,
    csv_rows,
    delimiter_hint,
    first_problem,
    guess_encoding,
    lines,
    missing_columns,
    missing_file,
    publish,
    refuse_existing,
    table_delimiter,
)
from medray.data.formats.base.protocol import ColumnOptions, Layout
from medray.data.formats.symptom_table import symptom_options
from medray.errors import DataError
from medray.text import dialect
from medray.text.csv_text import CsvRow
from medray.types import Example

_NO_ROW = CsvRow(1, 0, [])
_SAMPLE_ROWS = 200  # read to decide whether the first row is a header


class Options(ColumnOptions):
    name: Literal["delimited"]
    label: str | None = Field("label", description="column of the label; null for unlabelled rows")
    label_separator: str | None = Field(
        None, min_length=1, description="splits the label column into several labels"
    )
    id: str | None = Field(None, description="column of the row's id; without it, the row's number")
    split: str | None = Field(None, description="column that says train, validation or test")
    delimiter: Literal[",", "\t", "|", ";"] | None = Field(
        None,
        description=(
            "if not given: from a first line `sep=;`, the ending (.csv .tsv .psv) or the first line"
        ),
    )
    encoding: Annotated[str, AfterValidator(dialect.check_encoding)] = Field(
        "utf-8", description="encoding, such as cp1252 or utf-16"
    )
    columns: tuple[str, ...] | None = Field(
        None, min_length=1, description="names of the columns, if the file has no header line"
    )


def read(options: Options) -> Iterator[Example]:
    path = Path(options.path)
    delimiter = table_delimiter(path, options.delimiter, options.encoding)
    rows = csv_rows(path, delimiter, options.encoding)
    columns = list(map(dialect.plain_name, options.columns or next(rows, _NO_ROW).values))
    if wrong := _wrong_columns(columns, options):
        raise DataError("; ".join(wrong) + delimiter_hint(columns, delimiter))
    for number, row in enumerate(rows, 1):
        if any(map(str.strip, row.values)):
            yield _example(number, row.values, columns, options, f"{path}:{row.line}")


def write(examples: Iterable[Example], options: Options) -> None:
    """Write a table. Ids, labels and sides get a column even if the options name none, so that
    nothing is lost."""
    path = Path(options.path)
    refuse_existing(path)
    rows, column = list(examples), options.output_column()
    label = options.label or ("label" if any(example.labels for example in rows) else None)
    split = options.split or ("split" if any(example.split for example in rows) else None)
    own_columns = [name for name in (options.id or "id", column, label, split) if name]
    header = [*own_columns, *sorted({key for example in rows for key in example.metadata})]
    if len(set(header)) != len(header):
        raise DataError(f"{path}: two columns would have one name: {', '.join(header)}")
    columns = list(options.columns or header)
    if missing := set(header) - set(columns):
        raise DataError(
            f"{path}: data.format.columns lacks {', '.join(sorted(missing))}, which the examples "
            "need"
        )
    content = io.StringIO(newline="")
    writer = csv.DictWriter(
        content,
        columns,
        restval="",
        delimiter=table_delimiter(path, options.delimiter, options.encoding),
        lineterminator="\n",
    )
    if options.columns is None:
        writer.writeheader()
    for example in rows:
        values = {**example.metadata, options.id or "id": example.id, column: example.text}
        values |= {label: _join(example, options)} if label else {}
        writer.writerow(values | ({split: example.split or ""} if split else {}))
    publish(path, content.getvalue(), options.encoding)


def check(options: Options) -> list[str]:
    return missing_file(options.path) or first_problem(
        read(options), f"{options.path}: has no rows below its header"
    )


def sniff(path: Path, encoding: str | None = None) -> Layout | None:
    if not path.is_file():
        return None
    is_table = path.suffix.lower() in dialect.USUAL_DELIMITERS
    encoding = encoding or guess_encoding(path)
    first = next(lines(path, encoding=encoding, newline=""), "")
    if first.lstrip().startswith("{"):
        return None  # JSON has commas too
    delimiter = dialect.likely_delimiter(first, path.suffix)
    if delimiter is None:
        return None
    try:
        top = list(islice(csv_rows(path, delimiter, encoding), _SAMPLE_ROWS))
        header = top[0].values if top else []
        names = [name for name in map(dialect.plain_name, header) if name]
        if not is_table and len(names) < 2:
            return None
        if (
            path.suffix.lower() == ".csv"
            and delimiter == ","
            and symptom_options(header, [row.values for row in top[1:]]) is not None
        ):
            return None
        if not top or not first.strip():
            raise DataError(
                f"{path}:1: names no columns; "
                f"{'the first line is blank' if top else 'the file is empty'}"
            )
        if not names:
            raise DataError(
                f"{path}:1: names no columns; its first line must be their names, or "
                "data.format.columns must give them"
            )
        raw: dict[str, Any] = {"name": "delimited", "path": str(path)}
        if delimiter != dialect.USUAL_DELIMITERS.get(path.suffix.lower()):
            raw["delimiter"] = delimiter
        notes = []
        if encoding != "utf-8":
            raw["encoding"] = encoding
            notes.append(
                f"the file is not UTF-8 and is read as {encoding}: check letters beyond a to z"
            )
        if not dialect.is_header(header, [row.values for row in top[1:]]):
            raw["columns"] = names = dialect.default_names(len(header))
            notes.append(
                "the first line is read as a row, since it names no columns; data.format.columns "
                "can name them"
            )
        rows = list(read(Options.model_validate({**raw, "text": [names[0]], "label": None})))
    except DataError:
        if is_table:
            raise
        return None  # such as prose with commas
    columns = {
        name: [row.text if name == names[0] else row.metadata.get(name) for row in rows]
        for name in names
    }
    return Layout(raw, columns, tuple(notes))


def _wrong_columns(columns: list[str], options: Options) -> list[str]:
    where = f"{options.path}:1"
    if not columns:
        return [f"{where}: the file is empty; its first line must name the columns"]
    twice = sorted(name for name, count in Counter(columns).items() if name and count > 1)
    return [f"{where}: the column {name!r} occurs twice" for name in twice] + missing_columns(
        where, _columns_by_option(options), columns
    )


def _columns_by_option(options: Options) -> dict[str, str]:
    others = {"label": options.label, "id": options.id, "split": options.split}
    return {f"text.{number}": column for number, column in enumerate(options.text_columns)} | {
        key: value for key, value in others.items() if value
    }


def _example(
    number: int, row: list[str], columns: list[str], options: Options, where: str
) -> Example:
    if len(row) != len(columns):
        raise DataError(f"{where}: has {len(row)} values, the header has {len(columns)} columns")
    values = dict(zip(columns, row, strict=True))
    labels: tuple[str, ...] = ()
    if options.label and not options.is_dropped(values[options.label]):
        parts = (
            values[options.label].split(options.label_separator)
            if options.label_separator
            else [values[options.label]]
        )
        several = bool(options.label_separator)  # then a row may have no label
        labels = tuple(
            dict.fromkeys(
                check_label(label.strip(), options.labels, where)
                for label in parts
                if label.strip() or not several
            )
        )
    own_columns = set(_columns_by_option(options).values())
    metadata = {
        key: value
        for key, value in values.items()
        if key and value.strip() and key not in own_columns
    }
    text = options.text_of({column: values[column].strip() for column in options.text_columns})
    split = values[options.split].strip() or None if options.split else None
    row_id = check_id(values[options.id].strip(), where) if options.id else str(number)
    return Example(row_id, text, labels, split, metadata, where)


def _join(example: Example, options: Options) -> str:
    if options.label_separator is None and len(example.labels) > 1:
        raise DataError(
            f"{example.where or example.id}: has {len(example.labels)} labels; set "
            "label_separator to write them"
        )
    for label in example.labels:
        if options.label_separator and options.label_separator in label:
            raise DataError(
                f"{example.where or example.id}: label {label!r} holds the label_separator "
                f"{options.label_separator!r}"
            )
    return (options.label_separator or "").join(example.labels)
