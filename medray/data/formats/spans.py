"""Annotated texts: a JSON object per line with a text and its mentions, such as `{"start": 3,
"end": 9, "kind": "Disease", "text": "asthma"}`.

Offsets count characters. The `kind` and the `text` of a mention are optional; a `text` must equal
the text at the offsets."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medray.data.formats.base.mention_options import (
    MentionOptions,
    check_only_mentions,
    kinds_of,
    mention_at,
)
from medray.data.formats.base.parsing import (
    as_text,
    check_id,
    check_label,
    columns_of,
    first_problem,
    holds_mentions,
    json_line,
    json_objects,
    json_rows,
    missing_columns,
    missing_file,
    publish,
    refuse_existing,
)
from medray.data.formats.base.protocol import Layout
from medray.errors import DataError, suggest
from medray.types import Example, Mention

_KEYS = ("start", "end", "kind", "text")
_FIELDS = ("mentions", "spans", "entities")


class Options(MentionOptions):
    name: Literal["spans"]
    text: str = Field("text", description="field of the text")
    mentions: str = Field(
        "mentions",
        description="field of the list of mentions; a row must have it, and null is an error",
    )
    id: str | None = Field(None, description="field of the row's id; without it, the line's number")
    split: str | None = Field(None, description="field that says train, validation or test")
    default_kind: str = Field(
        "Disease", min_length=1, description="kind of mentions that do not give one"
    )


def read(options: Options) -> Iterator[Example]:
    path = Path(options.path)
    for number, row in json_objects(path):
        yield _example(row, number, options, f"{path}:{number}")


def write(examples: Iterable[Example], options: Options) -> None:
    path = Path(options.path)
    refuse_existing(path)
    lines = []
    for example in examples:
        check_only_mentions(example)
        mentions = [
            {"start": mention.start, "end": mention.end, "kind": mention.kind, "text": mention.text}
            for mention in example.mentions
        ]
        row: dict[str, Any] = {
            options.id or "id": example.id,
            options.text: example.text,
            options.mentions: mentions,
        }
        lines.append(json_line(row, example, options.split))
    publish(path, "".join(lines))


def check(options: Options) -> list[str]:
    return missing_file(options.path) or first_problem(
        read(options), f"{options.path}: has no rows"
    )


def sniff(path: Path) -> Layout | None:
    rows = json_rows(path)
    if rows is None or not holds_mentions(rows):
        return None
    field = next((name for name in _FIELDS if all(name in row for row in rows)), None)
    if field is None:
        raise DataError(
            f"{path}: holds mentions, but every row must have one field of {', '.join(_FIELDS)}; "
            "or name the field with data.format.mentions"
        )
    columns = {name: values for name, values in columns_of(rows, path).items() if name != field}
    raw = {"name": "spans", "path": str(path), "text": _text_field(rows, field, columns, path)}
    return Layout(raw if field == "mentions" else raw | {"mentions": field}, columns)


def _text_field(
    rows: Sequence[dict[str, Any]], field: str, names: Iterable[str], path: Path
) -> str:
    """Return the field whose texts hold the mentions."""

    def holds(name: str, row: dict[str, Any]) -> bool:
        options = Options(name="spans", path=str(path), text=name, mentions=field)
        try:
            return bool(_example(row, 0, options, ""))
        except DataError:
            return False

    candidates = sorted(
        (name for name in names if all(isinstance(row.get(name), str) for row in rows)),
        key=lambda name: name != "text",
    )
    fitting = [name for name in candidates if all(holds(name, row) for row in rows)]
    if not fitting and candidates:
        for number, row in enumerate(rows, 1):  # raises the first mistake
            _example(
                row,
                number,
                Options(name="spans", path=str(path), text=candidates[0], mentions=field),
                f"{path}:{number}",
            )
    if not fitting:
        raise DataError(f"{path}: holds mentions, but no field is a text in every row")
    return fitting[0]


def _example(row: dict[str, Any], number: int, options: Options, where: str) -> Example:
    own_fields = {
        "text": options.text,
        "mentions": options.mentions,
        **({"id": options.id} if options.id else {}),
    }
    if wrong := missing_columns(where, own_fields, list(row)):
        raise DataError("; ".join(wrong))
    text, items = row[options.text], row[options.mentions]
    if not isinstance(text, str):
        raise DataError(f"{where}: {options.text!r} must be text, found {type(text).__name__}")
    if not isinstance(items, list):
        raise DataError(
            f"{where}: {options.mentions!r} must be a list of mentions, found "
            f"{type(items).__name__}"
        )
    mentions = options.select(_mention(item, text, options, where) for item in items)
    labels = tuple(check_label(kind, options.labels, where) for kind in kinds_of(mentions))
    split = row.get(options.split) if options.split else None
    if not isinstance(split, str | None):
        raise DataError(f"{where}: {options.split!r} must be text, found {type(split).__name__}")
    row_id = (
        check_id("" if row[options.id] is None else as_text(row[options.id]).strip(), where)
        if options.id
        else str(number)
    )
    names_in_use = {*own_fields.values(), options.split}
    metadata = {
        key: as_text(value)
        for key, value in row.items()
        if key not in names_in_use and value not in (None, "")
    }
    return Example(row_id, text, labels, split, metadata, where, mentions=mentions)


def _mention(item: Any, text: str, options: Options, where: str) -> Mention:
    if not isinstance(item, dict):
        raise DataError(
            f"{where}: a mention must be an object with start and end, found {type(item).__name__}"
        )
    for key in item:
        if key not in _KEYS:
            raise DataError(f"{where}: a mention has the field {key!r:.60}; {suggest(key, _KEYS)}")
    if missing := [key for key in ("start", "end") if key not in item]:
        raise DataError(f"{where}: a mention has no {' and no '.join(missing)}")
    kind, annotation = item.get("kind") or options.default_kind, item.get("text")
    if not isinstance(kind, str) or not isinstance(annotation, str | None):
        raise DataError(f"{where}: the kind and the text of a mention must be text")
    return mention_at(text, item["start"], item["end"], kind.strip(), where, annotation)
