"""Texts with typed questions and their right answers: JSON lines, or a table.

A JSON line has a state, an answer to each question and, unless a file of questions gives them, its
own questions. A table needs the file of questions and has a column for each."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from medray.config.schema import PluginOptions
from medray.data.formats.base.parsing import (
    as_text,
    check_id,
    csv_rows,
    delimiter_hint,
    first_problem,
    json_layout,
    json_line,
    json_objects,
    json_rows,
    missing_columns,
    missing_file,
    publish,
    refuse_existing,
    table_delimiter,
)
from medray.data.formats.base.protocol import Layout
from medray.data.formats.base.question_parsing import (
    has_questions,
    parse_answers,
    parse_questions,
    read_questions,
)
from medray.errors import DataError
from medray.text import dialect
from medray.types import Example, Question


class Options(PluginOptions):
    FILES: ClassVar[tuple[str, ...]] = ("path", "question_file")
    name: Literal["typed_questions"]
    path: str = Field(description="file of JSON lines, or a table: .csv, .tsv or .psv")
    question_file: str | None = Field(
        None,
        description=(
            "YAML file of the questions, which every row is about; without it, each row has its own"
        ),
    )
    state: str = Field("state", description="field or column of the text")
    questions: str = Field("questions", description="field of a row's own questions")
    answers: str = Field(
        "expected",
        description="field of the right answers, by question; a table has a column per question",
    )
    id: str | None = Field(None, description="field of the row's id; without it, the line's number")
    split: str | None = Field(None, description="field that says train, validation or test")
    encoding: Annotated[str, AfterValidator(dialect.check_encoding)] = Field(
        "utf-8", description="encoding of a table, such as cp1252 or utf-16"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.is_table and self.question_file is None:
            raise ValueError(
                f"path {self.path!r} is a table, which cannot hold questions; set question_file"
            )
        if not self.is_table and dialect.codec(self.encoding) != dialect.codec("utf-8"):
            raise ValueError(
                f"encoding {self.encoding!r} does not apply: JSON lines are UTF-8; leave it out"
            )
        return self

    @property
    def is_table(self) -> bool:
        return PurePosixPath(self.path).suffix.lower() in dialect.USUAL_DELIMITERS


def read(options: Options) -> Iterator[Example]:
    questions = read_questions(Path(options.question_file)) if options.question_file else None
    rows = _table_rows(options, questions or ()) if options.is_table else _json_rows(options)
    for number, row, where in rows:
        yield _example(row, number, options, questions, where)


def write(examples: Iterable[Example], options: Options) -> None:
    """Write JSON lines, in which each row has its questions."""
    path = Path(options.path)
    if options.is_table or options.question_file:
        raise DataError(
            f"{path}: this format writes JSON lines with the questions of each row; give a path "
            "with the ending .jsonl, and no question_file"
        )
    refuse_existing(path)
    publish(path, "".join(_line(example, options) for example in examples))


def check(options: Options) -> list[str]:
    wrong = missing_file(options.path)
    if options.question_file:
        wrong += missing_file(options.question_file, "question_file")
    return wrong or first_problem(read(options), f"{options.path}: has no rows")


def sniff(path: Path, encoding: str | None = None) -> Layout | None:
    rows = json_rows(path)
    return json_layout("typed_questions", path, rows) if rows and has_questions(rows) else None


def _json_rows(options: Options) -> Iterator[tuple[int, dict[str, Any], str]]:
    path = Path(options.path)
    for number, row in json_objects(path):
        yield number, row, f"{path}:{number}"


def _table_rows(
    options: Options, questions: Iterable[Question]
) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Yield the rows of a table in the form of JSON lines."""
    path = Path(options.path)
    delimiter = table_delimiter(path, None, options.encoding)
    rows = csv_rows(path, delimiter, options.encoding)
    header = next(rows, None)
    columns = list(map(dialect.plain_name, header.values)) if header else []
    if twice := next((name for at, name in enumerate(columns) if name in columns[:at]), None):
        raise DataError(f"{path}:1: the column {twice!r} occurs twice; rename one")
    names = [question.name for question in questions]
    if missing := [name for name in names if name not in columns]:
        raise DataError(
            f"{path}:1: question {missing[0]!r:.60} has no column; add it, or remove the question"
            + delimiter_hint(columns, delimiter)
        )
    for number, row in enumerate(rows, 1):
        if not any(map(str.strip, row.values)):
            continue
        where = f"{path}:{row.line}"
        if len(row.values) != len(columns):
            raise DataError(
                f"{where}: has {len(row.values)} values, the header has {len(columns)} columns"
            )
        values: dict[str, Any] = {
            name: value.strip() for name, value in zip(columns, row.values, strict=True) if name
        }
        answers = {name: values.pop(name) for name in names}
        yield number, {**values, options.answers: answers}, where


def _example(
    row: dict[str, Any],
    number: int,
    options: Options,
    common: tuple[Question, ...] | None,
    where: str,
) -> Example:
    optional = {"id": options.id, "split": options.split}
    own_fields = {"state": options.state} | {key: name for key, name in optional.items() if name}
    own_fields |= {} if common else {"questions": options.questions}
    if wrong := missing_columns(where, own_fields, list(row)):
        raise DataError("; ".join(wrong))
    questions = common or parse_questions(row[options.questions], where)
    raw = row.get(options.answers)
    answers = parse_answers(questions, raw, where) if raw is not None else ()
    split = row[options.split] or None if options.split else None
    if not isinstance(split, str | None):
        raise DataError(f"{where}: {options.split!r} must be text, found {type(split).__name__}")
    row_id = str(number)
    if options.id:
        value = row[options.id]
        row_id = check_id("" if value is None else as_text(value).strip(), where)
    metadata = {
        key: as_text(value)
        for key, value in row.items()
        if key not in {*own_fields.values(), options.answers} and value not in (None, "")
    }
    example = Example(
        row_id,
        "" if row[options.state] is None else as_text(row[options.state]).strip(),
        split=split,
        metadata=metadata,
        where=where,
        questions=questions,
        answers=answers if any(answers) else (),
    )
    # Labels balance the split. Questions of single rows would put every row into training.
    return replace(example, labels=_labels(example)) if common else example


def _labels(example: Example) -> tuple[str, ...]:
    """Return the most probable answer to each question that has one."""
    return tuple(
        f"{question.name}: {question.values[shares.index(max(shares))]}"
        for question, shares in zip(example.questions, example.answers, strict=False)
        if shares
    )


def _line(example: Example, options: Options) -> str:
    if not example.questions:
        raise DataError(
            f"{example.where or example.id}: has no questions, which this format requires"
        )
    questions = {
        question.name: {
            "type": question.kind,
            "instructions": question.instructions,
            "options": {option.value: option.description or None for option in question.options},
        }
        for question in example.questions
    }
    row: dict[str, Any] = {
        options.id or "id": example.id,
        options.state: example.text,
        options.questions: questions,
    }
    if example.answers:
        row[options.answers] = {
            question.name: dict(zip(question.values, shares, strict=True))
            for question, shares in zip(example.questions, example.answers, strict=True)
            if shares
        }
    return json_line(row, example, options.split)
