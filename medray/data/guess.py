"""A sketch of a data set without a configuration: its format, the meaning of its columns, labels
and lengths."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medray import plugins
from medray.config.schema import PluginOptions, validate
from medray.data.audit import alike_labels
from medray.data.columns import Hints, column_options, find_name, join_names
from medray.data.formats.base.protocol import Layout, find_format, is_left_out, read
from medray.data.split import GIVEN_NAMES
from medray.errors import ConfigError, DataError, nearest_file
from medray.text.dialect import (
    ANSWER_NAMES,
    CONTEXT_NAMES,
    ENCODINGS,
    ID_NAMES,
    LABEL_NAMES,
    QUESTION_NAMES,
    SAVE_AS_CSV,
    is_encoding,
    is_spreadsheet,
)
from medray.types import Example

_LENGTHS = (64, 128, 256, 384, 512)  # in tokens; the base model reads 512
_CHARACTERS_PER_TOKEN = 4.0  # the base model's tokenizer has 4.1 to 4.8 in English abstracts


@dataclass(frozen=True)
class Sketch:
    """A data set, read with the options that were guessed."""

    options: PluginOptions
    num_rows: int
    labels: Counter[str]
    multi_label: bool
    has_mentions: bool  # of annotated texts, whose labels are the kinds of mentions
    has_answers: bool  # every row has an answer in words
    has_questions: bool  # every row has typed questions
    has_split: bool  # the data names the side of each row
    num_tokens: tuple[int, int, int]  # median, 95th percentile, longest; an estimate
    notes: tuple[str, ...]  # what the user should check
    data: Mapping[str, Any]  # options of `data` besides its format

    @property
    def max_length(self) -> int:
        return next((length for length in _LENGTHS if length >= self.num_tokens[1]), _LENGTHS[-1])

    @property
    def what(self) -> str:
        """What a row is labeled with."""
        if self.has_answers:
            return "one answer in words per row"
        if self.has_questions:
            return "answers to typed questions"
        if self.has_mentions:
            return "kinds of mentions"
        return "several labels per row" if self.multi_label else "one label per row"

    def render(self) -> str:
        options = self.options.model_dump(mode="json", exclude_unset=True)
        median, most, longest = self.num_tokens
        return "\n".join(
            [
                f"{options.pop('path')}: {self.num_rows} rows, format {options.pop('name')}"
                + "".join(
                    f", {name} {', '.join(value) if isinstance(value, list) else value}"
                    for name, value in options.items()
                ),
                f"{self.what}" + (f": {render_counts(self.labels)}" if self.labels else ""),
                f"tokens, estimated: median {median}, 95 % have at most {most}, longest {longest}",
                *(f"note: {note}" for note in self.notes),
            ]
        )


def sketch(place: str, hints: Hints) -> Sketch:
    """Guess the format and options of a data set, read it and return its figures."""
    path = Path(place)
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder{nearest_file(path)}")
    if path.is_file() and is_spreadsheet(path.name):
        raise DataError(f"{path}: {SAVE_AS_CSV}")
    if hints.encoding is not None and not is_encoding(hints.encoding):
        raise ConfigError(f"--encoding: {hints.encoding!r:.40} is not known; {ENCODINGS}")
    layout = _layout(path, hints.encoding)
    if not any(layout.columns.values()):
        raise DataError(f"{path}: has no rows")
    if not hints.text and not hints.label:
        layout = _answers(layout)
    kind = find_format(layout.options["name"]).Options
    options = validate(
        kind, layout.options | column_options(path, layout, kind, hints), where=str(path)
    )
    rows = [example for example in read(options) if example.text.strip()]
    examples = [example for example in rows if not is_left_out(example, options)]
    if not examples:
        raise DataError(f"{path}: no row has a text")
    _check_ids(examples)
    labels = Counter(label for example in examples for label in example.labels)
    has_mentions = any(example.mentions for example in examples)
    if len(labels) > max(2, len(examples) / 2) and not has_mentions:
        column = getattr(options, "label", None)
        raise DataError(
            f"{path}: {len(labels)} labels in {len(examples)} rows are not classes; choose "
            f"another column than {column!r} with --label-column"
        )
    sides = {GIVEN_NAMES.get((example.split or "").strip().lower()) for example in examples}
    lengths = [_num_characters(example) / _CHARACTERS_PER_TOKEN + 2 for example in examples]
    median, most, longest = (int(np.ceil(value)) for value in np.percentile(lengths, [50, 95, 100]))
    return Sketch(
        options=options,
        num_rows=len(examples),
        labels=labels,
        multi_label=any(len(example.labels) != 1 for example in examples),
        has_mentions=has_mentions,
        has_answers=all(example.response for example in examples),
        has_questions=all(example.questions for example in examples),
        has_split=sides >= {"train", "test"} and None not in sides,
        num_tokens=(median, most, longest),
        notes=layout.notes
        + _guess_of_label(layout, options, hints)
        + _notes(layout, options, labels, len(rows) - len(examples)),
        data=layout.data,
    )


def _num_characters(example: Example) -> int:
    """Return the length of a text with its answer, or with the longest of its questions."""
    questions = (
        len(question.instructions)
        + sum(len(option.value) + len(option.description) for option in question.options)
        for question in example.questions
    )
    return len(example.text) + len(example.response) + max(questions, default=0)


def _layout(path: Path, encoding: str | None) -> Layout:
    """Return the first layout that a format recognizes. If none does, raise the first error of a
    format that could not read the file."""
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
                f"{path}: --encoding does not apply; the layout {name} is always UTF-8"
            )
        if layout:
            return layout
    names = ", ".join(plugins.names("data.formats"))
    raise error or DataError(f"{path}: no format recognizes the layout ({names})" + _inside(path))


def _answers(layout: Layout) -> Layout:
    """Return the layout `instructions` if names and contents of columns are those of questions and
    answers in words; else the same layout."""
    if layout.options["name"] not in ("delimited", "jsonl") or "columns" in layout.options:
        return layout
    question, answer = (
        find_name(layout.columns, QUESTION_NAMES),
        find_name(layout.columns, ANSWER_NAMES),
    )
    if (
        not question
        or not answer
        or not (_in_words(layout.columns[question]) and _in_words(layout.columns[answer]))
    ):
        return layout
    context = find_name(layout.columns, CONTEXT_NAMES)
    if context and not all(isinstance(value, str | None) for value in layout.columns[context]):
        return layout
    names = {"instruction": question, "input": context, "response": answer}
    options = {**layout.options, "name": "instructions"} | {
        option: name for option, name in names.items() if name
    }
    about = f" about {context!r}" if context else ""
    note = (
        f"{answer!r} is read as an answer in words to {question!r}{about}; if it holds classes, "
        f"use --label-column {answer}"
    )
    return replace(layout, options=options, notes=(*layout.notes, note))


def _in_words(values: Sequence[Any]) -> bool:
    """Return whether the values are texts that rarely repeat, unlike classes."""
    return (
        all(isinstance(value, str | None) for value in values)
        and len({value for value in values if value}) > len(values) / 2
    )


def _guess_of_label(layout: Layout, options: PluginOptions, hints: Hints) -> tuple[str, ...]:
    """Return a note where only the contents of a column made it the label."""
    label = getattr(options, "label", None)
    if not label or hints.label or "label" in layout.options or find_name([label], LABEL_NAMES):
        return ()
    return (
        f"{label!r} is read as the label because its values repeat; --label-column names another",
    )


def _notes(
    layout: Layout, options: PluginOptions, labels: Iterable[str], num_dropped: int
) -> tuple[str, ...]:
    row_id, notes = find_name(layout.columns, ID_NAMES), []
    if row_id and "id" in type(options).model_fields and not getattr(options, "id", None):
        values = [str(value).strip() for value in layout.columns[row_id] if value not in (None, "")]
        missing, repeats = len(layout.columns[row_id]) - len(values), len(values) - len(set(values))
        kinds = [
            f"{num} rows have {what}"
            for num, what in ((missing, "none"), (repeats, "the value of another row"))
            if num
        ]
        notes.append(
            f"the column {row_id!r} cannot give ids: {' and '.join(kinds)}; rows are numbered "
            "instead"
        )
    notes += [
        f"the labels {' and '.join(map(repr, alike))} differ in spelling alone"
        for alike in alike_labels(labels)
    ]
    if num_dropped:
        notes.append(f"{num_dropped} rows without a label are left out")
    return tuple(notes)


def _check_ids(examples: Sequence[Example]) -> None:
    places: dict[str, str] = {}
    for example in examples:
        if example.id in places:
            raise DataError(
                f"{example.where}: id {example.id!r} is used twice, first at {places[example.id]}"
            )
        places[example.id] = example.where


def _inside(path: Path) -> str:
    if not path.is_dir():
        return ""
    names = sorted(
        each.name for each in path.iterdir() if each.is_file() and not each.name.startswith(".")
    )
    return (
        f"; it holds {join_names(names)}: name one of them"
        if names
        else "; it has no folder with .txt files"
    )


def render_counts(labels: Counter[str]) -> str:
    counts = [f"{label!r} ({count} rows)" for label, count in labels.most_common(20)]
    return ", ".join(counts) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")
