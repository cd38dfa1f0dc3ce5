"""The model card of a release, in the Hub's format: every figure names its split."""

import html
import re

import yaml

from medray import facts
from medray.checkpoint import Manifest
from medray.facts import DISCLAIMER, Facts, shown
from medray.records import ReleaseRecord

_PIPELINES = {"tagging": "token-classification", "extraction": "text-generation"}  # the Hub's names

_MARKS = (  # of Markdown: anywhere in a line, and at its start
    re.compile(r"()([\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))"),
    re.compile(r"^(\s*)([#+=-])", re.MULTILINE),
    re.compile(r"^(\s*\d+)([.)])", re.MULTILINE),
)


def render(record: ReleaseRecord, manifest: Manifest, *, merged: bool) -> str:
    told = facts.of(manifest, record.content_id, record.test, record.merge, record.calibration, record.int8)
    header = {
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": _PIPELINES.get(told.task, "text-classification" if told.labels else "text-generation"),
        "base_model": told.base,
        "tags": ["medray", "biomedical", "merged" if merged else "lora"],
    }
    note = f" ({_line(told.note)})" if told.note else ""
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        f"# {record.name}, version {record.version}",
        "",
        f"{told.task} by {_line(told.base)}{note} with {told.method}."
        + (f" Labels: {', '.join(map(_line, told.labels))}." if told.labels else ""),
        "",
        DISCLAIMER,
        "",
        *_figures(told),
        *(line for sentence in told.behaviour for line in ("", _line(sentence))),
        "",
        "## Where it comes from",
        "",
        *(f"- {name}: {_line(value)}" for name, value in told.origin),
    ]
    if record.task_options:
        lines += [
            "",
            "## Otherwise than in training",
            "",
            *(f"- task.{_line(name)}: {_line(value)}" for name, value in record.task_options.items()),
        ]
    if record.notes:
        lines += ["", "## Notes", "", _text(record.notes)]
    return "\n".join(lines) + "\n"


def _text(value: object) -> str:
    """Words of others as words: no HTML, link, table or heading comes of them."""
    text = html.escape("\n".join(str(value).splitlines()), quote=False)
    for mark in _MARKS:
        text = mark.sub(r"\1\\\2", text)
    return text


def _line(value: object) -> str:
    return _text(" ".join(str(value).split()))


def _figures(told: Facts) -> list[str]:
    has_test = told.num_test_rows is not None
    lines = ["## Figures", "", *([told.openings, ""] if told.openings else [])]
    lines += [
        "| metric | validation |" + (f" test ({told.num_test_rows} rows) |" if has_test else ""),
        "| --- | ---: |" + (" ---: |" if has_test else ""),
    ]
    for figure in told.figures:
        lines.append(f"| {_line(figure.metric)} | {shown(figure.validation)} |" + (f" {shown(figure.test)} |" if has_test else ""))
    if told.merge:
        lines += ["", f"Validation {_line(told.merge.metric)} in 4 bits {told.merge.unmerged:.4f}, merged {told.merge.merged:.4f}."]
    return lines
