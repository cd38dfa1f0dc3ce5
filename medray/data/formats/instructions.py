"""Instructions with answers: instruction, optional input and system prompt, and response; or
messages of several turns.

The file has a JSON object per line, or it is a table with a column per field (csv, tsv, psv, or any
file with a delimiter). A table has no messages."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from medray.config.schema import PluginOptions
from medray.data.formats.base.parsing import (
    as_text,
    check_id,
    csv_rows,
    delimiter_hint,
    first_problem,
    is_instructions,
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
from medray.errors import DataError, suggest
from medray.text import dialect
from medray.types import Example, Message

_ROLES = ("system", "user", "assistant")


class Options(PluginOptions):
    name: Literal["instructions"]
    path: str = Field(description="file, from the current directory")
    instruction: str = Field("instruction", description="field of the instruction or question")
    input: str = Field(
        "input", description="field of a text that the instruction is about; optional in a row"
    )
    response: str = Field("response", description="field of the answer")
    system: str = Field(
        "system",
        description=(
            "field of the row's own system prompt, which follows the task's; optional in a row"
        ),
    )
    messages: str = Field(
        "messages",
        description=(
            "field of a conversation, a list of role and content that ends with the assistant; "
            "optional in a row"
        ),
    )
    id: str | None = Field(None, description="field of the row's id; without it, the line's number")
    split: str | None = Field(None, description="field that says train, validation or test")
    delimiter: Literal[",", "\t", "|", ";"] | None = Field(
        None,
        description=(
            "of a table; if not given: from a first line `sep=;` or the ending (.csv .tsv .psv); "
            "a file with another ending is JSON lines"
        ),
    )
    encoding: Annotated[str, AfterValidator(dialect.check_encoding)] = Field(
        "utf-8", description="encoding of a table, such as cp1252 or utf-16"
    )

    @model_validator(mode="after")
    def _json_is_utf8(self) -> Self:
        if dialect.codec(self.encoding) != dialect.codec("utf-8") and not _is_table(self):
            raise ValueError(
                f"encoding {self.encoding!r} does not apply: JSON lines are UTF-8; a table has the "
                "ending .csv, .tsv or .psv, or the option delimiter"
            )
        return self


def read(options: Options) -> Iterator[Example]:
    path = Path(options.path)
    if _is_table(options):
        yield from _read_table(path, options)
        return
    for number, row in json_objects(path):
        yield _example(row, number, options, f"{path}:{number}")


def write(examples: Iterable[Example], options: Options) -> None:
    path = Path(options.path)
    if _is_table(options):
        raise DataError(
            f"{path}: this format writes JSON lines, not a table; give a path with the ending "
            ".jsonl, and no delimiter"
        )
    refuse_existing(path)
    lines = []
    for example in examples:
        if not example.response:
            raise DataError(
                f"{example.where or example.id}: has no response, which this format requires"
            )
        turns = [*example.turns, Message("assistant", example.response)]
        row: dict[str, Any] = {options.id or "id": example.id}
        if example.turns:
            row[options.messages] = [{"role": turn.role, "content": turn.content} for turn in turns]
        else:
            row |= {options.instruction: example.text, options.response: example.response}
        lines.append(json_line(row, example, options.split))
    publish(path, "".join(lines))


def check(options: Options) -> list[str]:
    return missing_file(options.path) or first_problem(
        read(options), f"{options.path}: has no rows"
    )


def sniff(path: Path, encoding: str | None = None) -> Layout | None:
    """Recognize JSON lines; data/guess recognizes tables of questions and answers."""
    rows = json_rows(path)
    if not rows or not is_instructions(rows):
        return None
    layout = json_layout("instructions", path, rows)
    return replace(layout, options=layout.options | {"encoding": encoding}) if encoding else layout


def _is_table(options: Options) -> bool:
    return (
        options.delimiter is not None
        or PurePosixPath(options.path).suffix.lower() in dialect.USUAL_DELIMITERS
    )


def _read_table(path: Path, options: Options) -> Iterator[Example]:
    delimiter = table_delimiter(path, options.delimiter, options.encoding)
    rows = csv_rows(path, delimiter, options.encoding)
    header = next(rows, None)
    if header is None:
        raise DataError(f"{path}:1: the file is empty; its first line must name the columns")
    columns = list(map(dialect.plain_name, header.values))
    if twice := next(
        (name for at, name in enumerate(columns) if name and name in columns[:at]), None
    ):
        raise DataError(f"{path}:1: the column {twice!r} occurs twice")
    needs = {"instruction": options.instruction, "response": options.response}
    optional = {"id": options.id, "split": options.split}
    if wrong := missing_columns(
        f"{path}:1", needs | {key: name for key, name in optional.items() if name}, columns
    ):
        raise DataError("; ".join(wrong) + delimiter_hint(columns, delimiter))
    for number, row in enumerate(rows, 1):
        if not any(map(str.strip, row.values)):
            continue
        where = f"{path}:{row.line}"
        if len(row.values) != len(columns):
            raise DataError(
                f"{where}: has {len(row.values)} values, the header has {len(columns)} columns"
            )
        values = {
            name: value
            for name, value in zip(columns, row.values, strict=True)
            if name and name != options.messages
        }
        side = {options.split: values[options.split].strip() or None} if options.split else {}
        yield _example(values | side, number, options, where)


def _example(row: dict[str, Any], number: int, options: Options, where: str) -> Example:
    row_id = str(number)
    if options.id:
        if wrong := missing_columns(where, {"id": options.id}, list(row)):
            raise DataError(wrong[0])
        row_id = check_id(
            "" if row[options.id] is None else as_text(row[options.id]).strip(), where
        )
    split = row.get(options.split) if options.split else None
    if not isinstance(split, str | None):
        raise DataError(f"{where}: {options.split!r} must be text, found {type(split).__name__}")
    own_fields = {
        options.instruction,
        options.input,
        options.response,
        options.system,
        options.messages,
        options.id,
        options.split,
    }
    metadata = {
        key: as_text(value)
        for key, value in row.items()
        if key not in own_fields and value not in (None, "")
    }
    turns = (
        _conversation(row, options, where)
        if row.get(options.messages) is not None
        else _single(row, options, where)
    )
    *before, last = turns
    if not last.content:
        raise DataError(f"{where}: the answer is empty")
    text = "\n\n".join(turn.content for turn in before if turn.role == "user")
    is_plain = len(before) == 1 and before[0].role == "user"
    return Example(
        row_id,
        text,
        (),
        split,
        metadata,
        where,
        turns=() if is_plain else tuple(before),
        response=last.content,
    )


def _single(row: dict[str, Any], options: Options, where: str) -> list[Message]:
    if wrong := missing_columns(
        where, {"instruction": options.instruction, "response": options.response}, list(row)
    ):
        raise DataError("; ".join(wrong))
    instruction = "\n\n".join(
        filter(None, (_text(row, options.instruction, where), _text(row, options.input, where)))
    )
    system = _text(row, options.system, where)
    return [
        *([Message("system", system)] if system else []),
        Message("user", instruction),
        Message("assistant", _text(row, options.response, where)),
    ]


def _conversation(row: dict[str, Any], options: Options, where: str) -> list[Message]:
    messages = row[options.messages]
    if not isinstance(messages, list) or not all(
        isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in messages
    ):
        raise DataError(
            f"{where}: {options.messages!r} must be a list of objects with role and content, both "
            "text"
        )
    for turn in messages:
        if turn.get("role") not in _ROLES:
            raise DataError(
                f"{where}: role {turn.get('role')!r:.60} is not known; "
                f"{suggest(turn.get('role'), _ROLES)}"
            )
    turns = [Message(turn["role"], turn["content"].strip()) for turn in messages]
    roles = [turn.role for turn in turns if turn.role != "system"]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise DataError(
            f"{where}: user and assistant must take turns, the user first and the assistant last; "
            f"found {', '.join(roles) or 'no turn'}"
        )
    return turns


def _text(row: dict[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str | None):
        raise DataError(f"{where}: {field!r} must be text, found {type(value).__name__}")
    return (value or "").strip()
