"""Instructions and their answers, one JSON object a line: instruction, optional input and system prompt, response; or messages of several turns."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medray.config.schema import PluginOptions
from medray.data.formats.base.parsing import (
    as_text,
    check_id,
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
)
from medray.data.formats.base.protocol import Layout
from medray.errors import DataError, allowed
from medray.types import Example, Message

_ROLES = ("system", "user", "assistant")


class Options(PluginOptions):
    name: Literal["instructions"]
    path: str = Field(description="file, from the current directory")
    instruction: str = Field("instruction", description="field of what is asked")
    input: str = Field("input", description="field of a text that the instruction is about, where a row has one")
    response: str = Field("response", description="field of the answer")
    system: str = Field("system", description="field of a system prompt of the row's own, where it has one; it comes after the task's")
    messages: str = Field(
        "messages", description="field of a conversation, a list of role and content, where a row has one; the assistant has the last word"
    )
    id: str | None = Field(None, description="field of the row's id; the line's number where not given")
    split: str | None = Field(None, description="field that says train, validation or test")


def read(options: Options) -> Iterator[Example]:
    path = Path(options.path)
    for number, row in json_objects(path):
        yield _example(row, number, options, f"{path}:{number}")


def write(examples: Iterable[Example], options: Options) -> None:
    path = Path(options.path)
    refuse_existing(path)
    written = []
    for example in examples:
        if not example.response:
            raise DataError(f"{example.where or example.id}: has no response; this format holds answers in words")
        said = [*example.turns, Message("assistant", example.response)]
        row: dict[str, Any] = {options.id or "id": example.id}
        if example.turns:
            row[options.messages] = [{"role": turn.role, "content": turn.content} for turn in said]
        else:
            row |= {options.instruction: example.text, options.response: example.response}
        written.append(json_line(row, example, options.split))
    publish(path, "".join(written))


def check(options: Options) -> list[str]:
    return missing_file(options.path) or first_problem(read(options), f"{options.path}: has no rows")


def sniff(path: Path) -> Layout | None:
    rows = json_rows(path)
    return json_layout("instructions", path, rows) if rows and is_instructions(rows) else None


def _example(row: dict[str, Any], number: int, options: Options, where: str) -> Example:
    row_id = str(number)
    if options.id:
        if wrong := missing_columns(where, {"id": options.id}, list(row)):
            raise DataError(wrong[0])
        row_id = check_id("" if row[options.id] is None else as_text(row[options.id]).strip(), where)
    split = row.get(options.split) if options.split else None
    if not isinstance(split, str | None):
        raise DataError(f"{where}: {options.split!r} must be text, found {type(split).__name__}")
    used = {options.instruction, options.input, options.response, options.system, options.messages, options.id, options.split}
    metadata = {key: as_text(value) for key, value in row.items() if key not in used and value not in (None, "")}
    turns = _conversation(row, options, where) if row.get(options.messages) is not None else _single(row, options, where)
    *before, last = turns
    if not last.content:
        raise DataError(f"{where}: the answer is empty")
    text = "\n\n".join(turn.content for turn in before if turn.role == "user")
    is_plain = len(before) == 1 and before[0].role == "user"
    return Example(row_id, text, (), split, metadata, where, turns=() if is_plain else tuple(before), response=last.content)


def _single(row: dict[str, Any], options: Options, where: str) -> list[Message]:
    if wrong := missing_columns(where, {"instruction": options.instruction, "response": options.response}, list(row)):
        raise DataError("; ".join(wrong))
    asked = "\n\n".join(filter(None, (_text(row, options.instruction, where), _text(row, options.input, where))))
    system = _text(row, options.system, where)
    return [
        *([Message("system", system)] if system else []),
        Message("user", asked),
        Message("assistant", _text(row, options.response, where)),
    ]


def _conversation(row: dict[str, Any], options: Options, where: str) -> list[Message]:
    held = row[options.messages]
    if not isinstance(held, list) or not all(isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in held):
        raise DataError(f"{where}: {options.messages!r} must be a list of objects with role and content, both text")
    for turn in held:
        if turn.get("role") not in _ROLES:
            raise DataError(f"{where}: role {turn.get('role')!r:.60} is not known; {allowed(turn.get('role'), _ROLES)}")
    turns = [Message(turn["role"], turn["content"].strip()) for turn in held]
    said = [turn.role for turn in turns if turn.role != "system"]
    if not said or said != ["user", "assistant"] * (len(said) // 2):
        raise DataError(
            f"{where}: user and assistant must take turns, the user first and the assistant last; found {', '.join(said) or 'nobody'}"
        )
    return turns


def _text(row: dict[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str | None):
        raise DataError(f"{where}: {field!r} must be text, found {type(value).__name__}")
    return (value or "").strip()
