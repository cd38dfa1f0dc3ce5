"""Tables with a disease per row and its symptoms in further columns: `Disease, Symptom_1 …
Symptom_n`. Rows with the same disease and symptoms are read once."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from medray.data.formats.base.parsing import (
    check_label,
    csv_rows,
    first_problem,
    guess_encoding,
    missing_file,
    publish,
    refuse_existing,
)
from medray.data.formats.base.protocol import Form, FormatOptions, FormField, Layout
from medray.errors import DataError, suggest
from medray.text import dialect
from medray.text.csv_text import CsvRow
from medray.text.template import Template
from medray.types import Example

_SYMPTOMS = "symptoms"
_SYMPTOM_COLUMN = re.compile(r"(.*?symptom)s?[\W_]*\d+", re.IGNORECASE)
_SAMPLE_ROWS = 200  # read to decide whether a table with a blank header has this layout


class Options(FormatOptions):
    name: Literal["symptom_table"]
    label: str = Field(
        "Disease", description="column of the disease; the first column if the header is blank"
    )
    symptom: str = Field(
        "Symptom", min_length=1, description="first part of the names of the symptoms' columns"
    )
    template: str = Field(
        "Patient presents with: {symptoms}", description="the text, from {symptoms}"
    )
    separator: str = Field("; ", min_length=1, description="between symptoms in the text")
    encoding: Annotated[str, AfterValidator(dialect.check_encoding)] = Field(
        "utf-8", description="encoding, such as cp1252 or utf-16"
    )

    @model_validator(mode="after")
    def _has_symptoms(self) -> Self:
        Template.parse(self.template).around(_SYMPTOMS)
        return self

    def form(self) -> Form:
        parts = Template.parse(self.template).parts
        return Form(
            parts=parts, fields=(FormField(name=_SYMPTOMS, kind="terms"),), separator=self.separator
        )

    def terms(self, example: Example) -> tuple[str, ...]:
        terms = example.metadata.get(_SYMPTOMS)
        return tuple(terms.split(self.separator)) if terms else ()


def read(options: Options) -> Iterator[Example]:
    path = Path(options.path)
    rows = csv_rows(path, ",", options.encoding)
    template, pairs = Template.parse(options.template), set()
    header = next(rows, CsvRow(1, 0, [])).values
    disease, places = _columns(header, options)
    for number, row in enumerate(rows, 1):
        where, values = f"{path}:{row.line}", row.values
        if not any(map(str.strip, values)):
            continue
        if len(values) != len(header):
            raise DataError(
                f"{where}: has {len(values)} values, the header has {len(header)} columns"
            )
        label = check_label(_clean(values[disease]), options.labels, where)
        symptoms = tuple(dict.fromkeys(filter(None, (_clean(values[place]) for place in places))))
        if (label, frozenset(symptoms)) in pairs:
            continue
        pairs.add((label, frozenset(symptoms)))
        terms = options.separator.join(symptoms)
        text = template.render({_SYMPTOMS: terms}) if symptoms else ""
        yield Example(
            str(number), text, (label,), None, {_SYMPTOMS: terms} if symptoms else {}, where
        )


def write(examples: Iterable[Example], options: Options) -> None:
    path = Path(options.path)
    refuse_existing(path)
    rows: list[tuple[str, list[str]]] = []
    for example in examples:
        where = example.where or example.id
        if _SYMPTOMS not in example.metadata or len(example.labels) != 1:
            raise DataError(
                f"{where}: needs exactly one label and the metadata {_SYMPTOMS!r} in this format"
            )
        rows.append((example.labels[0], example.metadata[_SYMPTOMS].split(options.separator)))
    most = max((len(symptoms) for _, symptoms in rows), default=0)
    content = io.StringIO(newline="")
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(
        [options.label, *(f"{options.symptom}_{number}" for number in range(1, most + 1))]
    )
    for label, symptoms in rows:
        writer.writerow([label, *symptoms, *[""] * (most - len(symptoms))])
    publish(path, content.getvalue(), options.encoding)


def check(options: Options) -> list[str]:
    return missing_file(options.path) or first_problem(
        read(options), f"{options.path}: has no rows below its header"
    )


def sniff(path: Path, encoding: str | None = None) -> Layout | None:
    if not path.is_file() or path.suffix.lower() != ".csv":
        return None
    encoding = encoding or guess_encoding(path)
    top = list(islice(csv_rows(path, ",", encoding), _SAMPLE_ROWS))
    own_options = symptom_options(top[0].values, [row.values for row in top[1:]]) if top else None
    if own_options is None:
        return None
    raw = {
        "name": "symptom_table",
        "path": str(path),
        **own_options,
        **({"encoding": encoding} if encoding != "utf-8" else {}),
    }
    labels = [example.labels[0] for example in read(Options.model_validate(raw))]
    note = (
        "rows of one disease share most words, so only equal texts count as duplicates "
        "(data.near_duplicate)"
    )
    return Layout(
        {"label": Options.model_fields["label"].default, **raw},
        {"label": labels},
        (note,),
        {"near_duplicate": 1.0},
    )


def symptom_options(header: Sequence[str], below: Sequence[Sequence[str]]) -> dict[str, Any] | None:
    """Return options if the columns are a disease and numbered symptoms, or if the header is blank
    and the rows look so; else None."""
    names = [name.strip() for name in header]
    if len(names) >= 3 and not any(names):
        diseases = [row[0].strip() for row in below if len(row) == len(names)]
        return (
            {}
            if len(diseases) >= 4 and all(diseases) and len(set(diseases)) <= len(diseases) / 2
            else None
        )
    prefixes = [match.group(1) for name in names if (match := _SYMPTOM_COLUMN.fullmatch(name))]
    diseases = [name for name in names if dialect.spelling(name) in dialect.LABEL_NAMES]
    if len(prefixes) < 2 or len(set(prefixes)) > 1 or len(diseases) != 1:
        return None
    return {"label": diseases[0], "symptom": prefixes[0]}


def _columns(header: list[str], options: Options) -> tuple[int, list[int]]:
    """Return the positions of the disease and of the symptoms. In a table with a blank header the
    disease is the first column."""
    names = [name.strip() for name in header]
    if len(names) > 1 and not any(names):
        return 0, list(range(1, len(names)))
    where = f"{options.path}:1"
    if options.label not in names:
        raise DataError(
            f"{where}: data.format.label names {options.label!r}; "
            f"{suggest(options.label, filter(None, names))}"
        )
    places = [
        place
        for place, name in enumerate(names)
        if name.startswith(options.symptom) and name != options.label
    ]
    if not places:
        raise DataError(
            f"{where}: no column begins with {options.symptom!r} (data.format.symptom); the "
            f"columns are {', '.join(names)}"
        )
    return names.index(options.label), places


def _clean(value: str) -> str:
    """Return a clean name: the public table has `skin_rash`, ` chills`, `dischromic _patches`."""
    return " ".join(value.replace("_", " ").split())
