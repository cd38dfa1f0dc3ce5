"""What the columns of a table mean: text, label, id or split.

Names decide before contents. Where neither decides, an error lists the columns, because a wrong
guess would give wrong results."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medray.config.schema import PluginOptions
from medray.data.formats.base.protocol import Layout
from medray.data.split import GIVEN_NAMES
from medray.errors import ConfigError, DataError, suggest
from medray.text.dialect import (
    CONTEXT_NAMES,
    ID_NAMES,
    LABEL_NAMES,
    QUESTION_NAMES,
    TEXT_NAMES,
    spelling,
)

ColumnValues = Mapping[str, Sequence[Any]]  # the values of each column
_SEPARATORS = ("|", ";", ",")
_MAX_LABELS = 50


@dataclass(frozen=True)
class Hints:
    """What the user says about a data set; what is missing is guessed."""

    text: tuple[str, ...] = ()
    label: str | None = None
    id: str | None = None
    encoding: str | None = None
    drop_unlabelled: bool = False


def column_options(
    path: Path, layout: Layout, kind: type[PluginOptions], hints: Hints
) -> dict[str, Any]:
    """Return the format's options that name columns: from the hints, else by name, else by
    content."""
    options = _from_hints(path, layout, kind, hints)
    columns, fields = layout.columns, kind.model_fields
    row_id, side = find_name(columns, ID_NAMES), find_name(columns, ("split",))
    if "id" in fields and hints.id is None and row_id and _is_unique(columns[row_id]):
        options["id"] = row_id
    if "split" in fields and side and _has_sides_only(columns[side]):
        options["split"] = side
    roles = {hints.label, options.get("id"), options.get("split")}
    if not hints.text and "text" in fields and "text" not in layout.options:
        free = {name: values for name, values in columns.items() if name not in roles}
        label = find_name(free, LABEL_NAMES) if "label" in fields else None
        options["text"] = _text_columns(free, label)
    if "label" in fields and "label" not in layout.options:
        roles |= set(options["text"])
        free = {name: values for name, values in columns.items() if name not in roles}
        options["label"] = hints.label or _label_column(free)
    _check_clear(path, columns, options)
    separator = _label_separator(columns, options, kind, layout.options.get("delimiter"))
    if options.get("label") and not separator and not hints.drop_unlabelled:
        _check_labels(path, columns[options["label"]])
    return options | separator


def _from_hints(
    path: Path, layout: Layout, kind: type[PluginOptions], hints: Hints
) -> dict[str, Any]:
    """Return the options that the hints give, after checks that they apply."""
    columns_of = {"text": hints.text, "label": hints.label, "id": hints.id}
    for option, value in columns_of.items():
        if value and (option not in kind.model_fields or option in layout.options):
            raise ConfigError(
                f"{path}: --{option}-column does not apply: the layout "
                f"{layout.options['name']} decides it; drop it"
            )
        for name in [value] if isinstance(value, str) else value or ():
            if name not in layout.columns:
                raise ConfigError(
                    f"{path}: --{option}-column names {name!r}; {suggest(name, layout.columns)}"
                )
    if hints.label in hints.text:
        raise ConfigError(
            f"{path}: {hints.label!r} is named as the text and as the label, which would give the "
            "answer away; name another column"
        )
    options: dict[str, Any] = {name: value for name, value in columns_of.items() if value}
    if hints.drop_unlabelled:
        if "drop_unlabelled" not in kind.model_fields:
            raise ConfigError(
                f"{path}: --drop-unlabelled does not apply: every row of the layout "
                f"{layout.options['name']} has a label; drop it"
            )
        options["drop_unlabelled"] = True
    return options


def _check_clear(path: Path, columns: ColumnValues, options: Mapping[str, Any]) -> None:
    missing = [option for option in ("text", "label") if option in options and not options[option]]
    if missing:
        flags = [f"--{option}-column COLUMN" for option in missing]
        raise ConfigError(
            f"{path}: which column is the {' and which is the '.join(missing)} is not clear; add "
            f"{' and '.join(flags)}; the columns are {join_names(columns)}"
        )


def _check_labels(path: Path, values: Sequence[Any]) -> None:
    num_empty = sum(
        value is None or (isinstance(value, str) and not value.strip()) for value in values
    )
    if num_empty:
        raise DataError(
            f"{path}: {num_empty} of {len(values)} rows have no label; fill them in, or leave "
            f"them out by --drop-unlabelled, which keeps {len(values) - num_empty} rows"
        )


def prediction_columns(columns: ColumnValues) -> Hints:
    """Return the columns of texts and ids in rows without answers; none where names and contents
    do not tell. A few ids may be missing or repeated."""
    row_id = find_name(columns, ID_NAMES)
    free = {name: values for name, values in columns.items() if name != row_id}
    ids = [str(value) for value in columns.get(row_id or "", ()) if value not in (None, "")]
    is_id = row_id is not None and len(set(ids)) >= 0.9 * len(columns[row_id])
    texts = _text_columns(free, find_name(free, LABEL_NAMES))
    return Hints(tuple(texts), id=row_id if is_id else None)


def find_name(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """Return the column with the first of these names, in any spelling, or None."""
    by_spelling = {spelling(name): name for name in reversed(list(columns))}
    return next((by_spelling[name] for name in names if name in by_spelling), None)


def join_names(names: Sequence[str] | Mapping[str, Any]) -> str:
    """Return names as a list for a message, shortened to its first 20."""
    short = [name if len(name) <= 40 else f"{name[:37]}..." for name in list(names)[:20]]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(short) + more or "none"


def _text_columns(columns: ColumnValues, label: str | None) -> list[str]:
    for first, second in ((("title",), ("abstract",)), (QUESTION_NAMES, CONTEXT_NAMES)):
        if (head := find_name(columns, first)) and (body := find_name(columns, second)):
            return [head, body]
    if name := find_name(columns, TEXT_NAMES):
        return [name]
    lengths = {
        name: sum(len(value or "") for value in values) / len(values)
        for name, values in columns.items()
        if name != label and all(isinstance(value, str | None) for value in values)
    }
    longest = sorted(lengths, key=lambda name: -lengths[name])[:2]
    if (
        longest
        and lengths[longest[0]] >= 20
        and (len(longest) == 1 or lengths[longest[0]] >= 3 * lengths[longest[1]])
    ):
        return [longest[0]]
    return []


def _label_column(columns: ColumnValues) -> str | None:
    candidates = [column for name in LABEL_NAMES if (column := find_name(columns, [name]))]
    if candidates and (len(candidates) == 1 or candidates[0].lower() in ("label", "labels")):
        return candidates[0]
    repetitive = [name for name, values in columns.items() if _is_repetitive(values)]
    return repetitive[0] if len(repetitive) == 1 else None


def _is_repetitive(values: Sequence[Any]) -> bool:
    """Return whether the values are a few texts, or lists of them, that repeat like classes. Up to
    half of them may be blank: rows without a label."""
    parts = [part for value in values for part in (value if isinstance(value, list) else [value])]
    labels = [part for part in parts if part is not None and part != ""]
    if len(labels) < len(parts) / 2 or not all(isinstance(p, str) and p.strip() for p in labels):
        return False
    return 2 <= len(set(labels)) <= min(_MAX_LABELS, len(labels) / 2)


def _label_separator(
    columns: ColumnValues, options: Mapping[str, Any], kind: type[PluginOptions], delimiter: Any
) -> dict[str, str]:
    """Return the option for a separator of labels if the values show one: there are fewer pieces
    than values, and some pieces are also whole values."""
    if "label_separator" not in kind.model_fields:
        return {}
    values = {value for value in columns[options["label"]] if value}
    for separator in _SEPARATORS:
        multiple = [value for value in values if separator in value]
        pieces = {piece.strip() for value in multiple for piece in value.split(separator)} - {""}
        alone = values - set(multiple)
        if (
            separator != delimiter
            and multiple
            and alone & pieces
            and len(alone | pieces) < len(values)
        ):
            return {"label_separator": separator}
    return {}


def _is_unique(values: Sequence[Any]) -> bool:
    texts = [str(value).strip() for value in values if value is not None]
    return len(texts) == len(values) and all(texts) and len(set(texts)) == len(texts)


def _has_sides_only(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) and value.strip().lower() in GIVEN_NAMES for value in values)
