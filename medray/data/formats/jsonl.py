"""Files with a JSON object per line. The options name the fields of text, label, id and split; the
others are metadata."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medray.data.formats.base.parsing import (
    as_text,
    check_id,
    check_label,
    first_problem,
    holds_mentions,
    is_instructions,
    is_pubmedqa,
    json_layout,
    json_line,
    json_objects,
    json_rows,
    missing_columns,
    missing_file,
    publish,
    refuse_existing,
)
from medray.data.formats.base.protocol import ColumnOptions, Layout
from medray.data.formats.base.question_parsing import has_questions
from medray.errors import DataError
from medray.types import Example


class Options(ColumnOptions):
    name: Literal["jsonl"]
    label: str | None = Field(
        "label",
        description="field of the label, or of a list of labels; a number becomes text; null for "
        "unlabelled rows",
    )
    id: str | None = Field(None, description="field of the row's id; without it, the line's number")
    split: str | None = Field(None, description="field that says train, validation or test")


def read(options: Options) -> Iterator[Example]:
    path = Path(options.path)
    for number, row in json_objects(path):
        yield example(row, number, options, f"{path}:{number}")


def write(examples: Iterable[Example], options: Options) -> None:
    """Write JSON lines. Ids, labels and sides get a field even if the options name none, so that
    nothing is lost."""
    path = Path(options.path)
    refuse_existing(path)
    rows, field = list(examples), options.output_column()
    label = options.label or ("label" if any(example.labels for example in rows) else None)
    lines = []
    for example in rows:
        row: dict[str, Any] = {options.id or "id": example.id, field: example.text}
        if label:
            row[label] = example.labels[0] if len(example.labels) == 1 else list(example.labels)
        lines.append(json_line(row, example, options.split))
    publish(path, "".join(lines))


def check(options: Options) -> list[str]:
    return missing_file(options.path) or first_problem(
        read(options), f"{options.path}: has no rows"
    )


def sniff(path: Path) -> Layout | None:
    rows = json_rows(path)
    if rows is None or any(map(is_pubmedqa, rows)):
        return None
    if is_instructions(rows) or has_questions(rows) or holds_mentions(rows):
        return None  # the file is of another format
    return json_layout("jsonl", path, rows)


def example(row: dict[str, Any], number: int, options: Options, where: str) -> Example:
    optional = {"label": options.label, "id": options.id}
    own_fields = {f"text.{place}": field for place, field in enumerate(options.text_columns)} | {
        key: value for key, value in optional.items() if value
    }
    wrong = missing_columns(where, own_fields, list(row))
    if wrong:
        raise DataError("; ".join(wrong))
    for field in options.text_columns:
        if not isinstance(row[field], str):
            raise DataError(f"{where}: {field!r} must be text, found {type(row[field]).__name__}")
    labels: tuple[str, ...] = ()
    if options.label and not options.is_dropped(row[options.label]):
        value = row[options.label]
        several = value if isinstance(value, list) else [value]
        if not all(isinstance(label, str | int) for label in several):
            raise DataError(
                f"{where}: {options.label!r} must be text, a whole number, or a list of these, "
                f"found {type(value).__name__}; write each label as text"
            )
        texts = [as_text(label).strip() for label in several]
        labels = tuple(dict.fromkeys(check_label(text, options.labels, where) for text in texts))
    names_in_use = {*own_fields.values(), options.split}
    metadata = {
        key: as_text(value)
        for key, value in row.items()
        if key not in names_in_use and value not in (None, "")
    }
    split = row.get(options.split) if options.split else None
    if not isinstance(split, str | None):
        raise DataError(f"{where}: {options.split!r} must be text, found {type(split).__name__}")
    text = options.text_of({field: row[field].strip() for field in options.text_columns})
    row_id = (
        check_id("" if row[options.id] is None else as_text(row[options.id]).strip(), where)
        if options.id
        else str(number)
    )
    return Example(row_id, text, labels, split, metadata, where)
