"""A data set that nobody described yet: which format it has, and what its columns mean.

Names decide before contents, and where neither does the answer is a sentence that lists the
columns: nothing is guessed that a wrong figure could come from."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medray import plugins
from medray.config.schema import PluginOptions, validate
from medray.data.audit import alike_labels
from medray.data.formats.base.protocol import Layout, find_format, is_left_out, read
from medray.data.split import GIVEN_NAMES
from medray.errors import ConfigError, DataError, suggest
from medray.text.dialect import (
    ANSWER_NAMES,
    CONTEXT_NAMES,
    ENCODINGS,
    ID_NAMES,
    LABEL_NAMES,
    QUESTION_NAMES,
    SAVE_AS_CSV,
    TEXT_NAMES,
    is_encoding,
    is_spreadsheet,
    spelling,
)
from medray.types import Example

_SEPARATORS = ("|", ";", ",")
_MOSTLABEL_NAMES = 50
_LENGTHS = (64, 128, 256, 384, 512)  # tokens; the base model reads 512
_CHARACTERS_A_TOKEN = 4.0  # English abstracts have 4.1 to 4.8 with the base model's tokenizer


@dataclass(frozen=True)
class Hints:
    """What the user says of the columns; what is not given is found."""

    text: tuple[str, ...] = ()
    label: str | None = None
    id: str | None = None
    encoding: str | None = None
    drop_unlabelled: bool = False


@dataclass(frozen=True)
class Sketch:
    """A data set as it was read with the options that were found."""

    options: PluginOptions
    num_rows: int
    labels: Counter[str]
    multi_label: bool
    has_mentions: bool  # the texts are annotated: labels are the kinds of their mentions
    has_answers: bool  # in words
    has_split: bool
    num_tokens: tuple[int, int, int]  # median, 95 of 100, longest; estimated from the characters
    notes: tuple[str, ...]  # what the user should look at
    data: Mapping[str, Any]  # options of `data` beside its format

    @property
    def max_length(self) -> int:
        return next((length for length in _LENGTHS if length >= self.num_tokens[1]), _LENGTHS[-1])

    @property
    def what(self) -> str:
        """What labels are to a row."""
        if self.has_answers:
            return "an answer in words a row"
        if self.has_mentions:
            return "kinds of mentions"
        return "several labels a row" if self.multi_label else "one label a row"

    def render(self) -> str:
        chosen = self.options.model_dump(mode="json", exclude_unset=True)
        median, most, longest = self.num_tokens
        return "\n".join(
            [
                f"{chosen.pop('path')}: {self.num_rows} rows, format {chosen.pop('name')}"
                + "".join(
                    f", {name} {', '.join(value) if isinstance(value, list) else value}"
                    for name, value in chosen.items()
                ),
                f"{self.what}" + (f": {render_counts(self.labels)}" if self.labels else ""),
                f"tokens, estimated: median {median}, 95 % have at most {most}, longest {longest}",
                *(f"note: {note}" for note in self.notes),
            ]
        )


def sketch(place: str, asked: Hints) -> Sketch:
    path = Path(place)
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder")
    if path.is_file() and is_spreadsheet(path.name):
        raise DataError(f"{path}: {SAVE_AS_CSV}")
    if asked.encoding is not None and not is_encoding(asked.encoding):
        raise ConfigError(f"--encoding {asked.encoding!r:.40}: is not known; {ENCODINGS}")
    layout = _layout(path, asked.encoding)
    if not any(layout.columns.values()):
        raise DataError(f"{path}: has no rows")
    if not asked.text and not asked.label:
        layout = _answers(layout)
    kind = find_format(layout.options["name"]).Options
    options = validate(kind, layout.options | _meanings(path, layout, kind, asked), where=str(path))
    rows = [example for example in read(options) if example.text.strip()]
    examples = [example for example in rows if not is_left_out(example, options)]
    if not examples:
        raise DataError(f"{path}: has no row with a text")
    _check_ids(examples)
    labels = Counter(label for example in examples for label in example.labels)
    has_mentions = any(example.mentions for example in examples)
    if len(labels) > max(2, len(examples) / 2) and not has_mentions:
        column = getattr(options, "label", None)
        raise DataError(
            f"{path}: {len(labels)} labels in {len(examples)} rows are no classes; "
            f"--label-column names another column than {column!r}"
        )
    sides = {GIVEN_NAMES.get((example.split or "").strip().lower()) for example in examples}
    lengths = [
        (len(example.text) + len(example.response)) / _CHARACTERS_A_TOKEN + 2
        for example in examples
    ]
    median, most, longest = (int(np.ceil(value)) for value in np.percentile(lengths, [50, 95, 100]))
    return Sketch(
        options=options,
        num_rows=len(examples),
        labels=labels,
        multi_label=any(len(example.labels) != 1 for example in examples),
        has_mentions=has_mentions,
        has_answers=all(example.response for example in examples),
        has_split=sides >= {"train", "test"} and None not in sides,
        num_tokens=(median, most, longest),
        notes=layout.notes + _notes(layout, options, labels, len(rows) - len(examples)),
        data=layout.data,
    )


def _layout(path: Path, encoding: str | None) -> Layout:
    """The first one that a format finds. What another one cannot read is told where none does."""
    error = None
    for name in plugins.names("data.formats"):
        format = find_format(name)
        has_encoding = encoding and "encoding" in format.Options.model_fields
        try:
            layout = format.sniff(path, encoding) if has_encoding else format.sniff(path)
        except DataError as err:
            error = error or err
            continue
        if layout and encoding and not has_encoding:
            raise ConfigError(
                f"{path}: --encoding does not apply: the layout {name} is UTF-8 alone"
            )
        if layout:
            return layout
    known = ", ".join(plugins.names("data.formats"))
    raise error or DataError(
        f"{path}: has none of the layouts that are known ({known})" + _inside(path)
    )


def _answers(layout: Layout) -> Layout:
    """The layout of questions with answers in words, where the names of a table's columns and what
    they hold say so; else the same layout."""
    if layout.options["name"] not in ("delimited", "jsonl") or "columns" in layout.options:
        return layout
    question, answer = _named(layout.columns, QUESTION_NAMES), _named(layout.columns, ANSWER_NAMES)
    if (
        not question
        or not answer
        or not (_in_words(layout.columns[question]) and _in_words(layout.columns[answer]))
    ):
        return layout
    context = _named(layout.columns, CONTEXT_NAMES)
    if context and not all(isinstance(value, str | None) for value in layout.columns[context]):
        return layout
    names = {"instruction": question, "input": context, "response": answer}
    options = {**layout.options, "name": "instructions"} | {
        option: name for option, name in names.items() if name
    }
    about = f" about {context!r}" if context else ""
    note = (
        f"{answer!r} is read as an answer in words to {question!r}{about}; for classes, name their "
        "column with --label-column"
    )
    return replace(layout, options=options, notes=(*layout.notes, note))


def _in_words(values: Sequence[Any]) -> bool:
    """Texts that hardly ever come again, as no class would."""
    return (
        all(isinstance(value, str | None) for value in values)
        and len({value for value in values if value}) > len(values) / 2
    )


def _notes(
    layout: Layout, options: PluginOptions, labels: Iterable[str], num_dropped: int
) -> tuple[str, ...]:
    row_id, notes = _named(layout.columns, ID_NAMES), []
    if row_id and "id" in type(options).model_fields and not getattr(options, "id", None):
        values = [str(value).strip() for value in layout.columns[row_id] if value not in (None, "")]
        missing, again = len(layout.columns[row_id]) - len(values), len(values) - len(set(values))
        kinds = [
            f"{num} rows have {what}"
            for num, what in ((missing, "none"), (again, "the value of another row"))
            if num
        ]
        notes.append(
            f"the column {row_id!r} gives no ids: {' and '.join(kinds)}; rows are numbered instead"
        )
    notes += [
        f"the labels {' and '.join(map(repr, alike))} differ in spelling alone"
        for alike in alike_labels(labels)
    ]
    if num_dropped:
        notes.append(f"{num_dropped} rows without a label are left out")
    return tuple(notes)


def prediction_columns(columns: Mapping[str, Sequence[Any]]) -> Hints:
    """Where texts and ids of rows without answers are; nothing where names and contents do not say.
    A few ids may be missing or repeated."""
    row_id = _named(columns, ID_NAMES)
    free = {name: values for name, values in columns.items() if name != row_id}
    given = [str(value) for value in columns.get(row_id or "", ()) if value not in (None, "")]
    is_id = row_id is not None and len(set(given)) >= 0.9 * len(columns[row_id])
    return Hints(tuple(_text(free, _named(free, LABEL_NAMES))), id=row_id if is_id else None)


def _meanings(
    path: Path, layout: Layout, kind: type[PluginOptions], asked: Hints
) -> dict[str, Any]:
    """The options that name columns: as asked, by name, by content."""
    columns = layout.columns
    given = {"text": asked.text, "label": asked.label, "id": asked.id}
    for option, value in given.items():
        if value and (option not in kind.model_fields or option in layout.options):
            raise ConfigError(
                f"{path}: --{option}-column does not apply: the layout "
                f"{layout.options['name']} decides it"
            )
        for name in [value] if isinstance(value, str) else value or ():
            if name not in columns:
                raise ConfigError(
                    f"{path}: --{option}-column asks for {name!r}; {suggest(name, columns)}"
                )
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value}
    row_id, side = _named(columns, ID_NAMES), _named(columns, ("split",))
    if "id" in kind.model_fields and asked.id is None and row_id and _unique(columns[row_id]):
        chosen["id"] = row_id
    if "split" in kind.model_fields and side and _all_sides(columns[side]):
        chosen["split"] = side
    used = {asked.label, chosen.get("id"), chosen.get("split")}
    if not asked.text and "text" in kind.model_fields and "text" not in layout.options:
        free = {name: values for name, values in columns.items() if name not in used}
        chosen["text"] = _text(
            free, _named(free, LABEL_NAMES) if "label" in kind.model_fields else None
        )
    if "label" in kind.model_fields and "label" not in layout.options:
        used |= set(chosen["text"])
        free = {name: values for name, values in columns.items() if name not in used}
        chosen["label"] = asked.label or _label(free)
    if asked.drop_unlabelled:
        if "drop_unlabelled" not in kind.model_fields:
            raise ConfigError(
                f"{path}: --drop-unlabelled does not apply: every row of the layout "
                f"{layout.options['name']} has a label"
            )
        chosen["drop_unlabelled"] = True
    missing = [option for option in ("text", "label") if option in chosen and not chosen[option]]
    if missing:
        options = [option for option in ("text", "label", "id") if option in kind.model_fields]
        raise ConfigError(
            f"{path}: which column is the {' and which is the '.join(missing)} is not clear; the "
            f"columns are {_listed(columns)}: "
            f"name them with {', '.join(f'--{option}-column COLUMN' for option in options)}"
        )
    several = _several(columns, chosen, kind, layout.options.get("delimiter"))
    if chosen.get("label") and not several and not asked.drop_unlabelled:
        values = columns[chosen["label"]]
        if num_empty := sum(
            value is None or (isinstance(value, str) and not value.strip()) for value in values
        ):
            raise DataError(
                f"{path}: {num_empty} of {len(values)} rows have no label; fill them in, or leave "
                "them out by --drop-unlabelled"
            )
    return chosen | several


def _named(columns: Mapping[str, Sequence[Any]], known: Sequence[str]) -> str | None:
    """The column with the best known name, however it is spelled."""
    spelled = {spelling(name): name for name in reversed(list(columns))}
    return next((spelled[name] for name in known if name in spelled), None)


def _text(columns: Mapping[str, Sequence[Any]], label: str | None) -> list[str]:
    for first, second in ((("title",), ("abstract",)), (QUESTION_NAMES, CONTEXT_NAMES)):
        if (head := _named(columns, first)) and (body := _named(columns, second)):
            return [head, body]
    if name := _named(columns, TEXT_NAMES):
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


def _label(columns: Mapping[str, Sequence[Any]]) -> str | None:
    named = [name for known in LABEL_NAMES if (name := _named(columns, [known]))]
    if named and (len(named) == 1 or named[0].lower() in ("label", "labels")):
        return named[0]
    fitting = [name for name, values in columns.items() if _few(values)]
    return fitting[0] if len(fitting) == 1 else None


def _few(values: Sequence[Any]) -> bool:
    """Texts, or lists of them, of which each occurs again and again."""
    parts = [part for value in values for part in (value if isinstance(value, list) else [value])]
    if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        return False
    return 2 <= len(set(parts)) <= min(_MOSTLABEL_NAMES, len(values) / 2)


def _several(
    columns: Mapping[str, Sequence[Any]],
    chosen: Mapping[str, Any],
    kind: type[PluginOptions],
    delimiter: Any,
) -> dict[str, str]:
    """The separator of labels, where the values show one: pieces are fewer than values, and some
    stand alone as well."""
    if "label_separator" not in kind.model_fields:
        return {}
    values = {value for value in columns[chosen["label"]] if value}
    for separator in _SEPARATORS:
        joined = [value for value in values if separator in value]
        pieces = {piece.strip() for value in joined for piece in value.split(separator)} - {""}
        alone = values - set(joined)
        if (
            separator != delimiter
            and joined
            and alone & pieces
            and len(alone | pieces) < len(values)
        ):
            return {"label_separator": separator}
    return {}


def _unique(values: Sequence[Any]) -> bool:
    texts = [str(value).strip() for value in values if value is not None]
    return len(texts) == len(values) and all(texts) and len(set(texts)) == len(texts)


def _all_sides(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) and value.strip().lower() in GIVEN_NAMES for value in values)


def _check_ids(examples: Sequence[Example]) -> None:
    seen: dict[str, str] = {}
    for example in examples:
        if example.id in seen:
            raise DataError(
                f"{example.where}: id {example.id!r} was used before, at {seen[example.id]}"
            )
        seen[example.id] = example.where


def _inside(path: Path) -> str:
    if not path.is_dir():
        return ""
    found = sorted(
        each.name for each in path.iterdir() if each.is_file() and not each.name.startswith(".")
    )
    return (
        f"; it holds {_listed(found)}: name one of them"
        if found
        else "; it has no folder with .txt files"
    )


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    shown = [name if len(name) <= 40 else f"{name[:37]}..." for name in list(names)[:20]]
    return ", ".join(shown) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"


def render_counts(labels: Counter[str]) -> str:
    shown = [f"{label!r} ({count} rows)" for label, count in labels.most_common(20)]
    return ", ".join(shown) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")
