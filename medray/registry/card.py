"""Facts about a release, for its model card, its study's report and HTTP, and the model card in the
Hub's format. Each metric names its split."""

import html
import re
from dataclasses import dataclass

import yaml

from medray.evaluation.analysis import Analysis, WorstSlice
from medray.evaluation.leaderboard import Entry, Leaderboard
from medray.records import (
    AS_IT_IS,
    CalibrationRecord,
    MergeRecord,
    ReleaseRecord,
    SliceRecord,
    TestRecord,
)
from medray.storage.checkpoint import Manifest
from medray.tasks.base.protocol import Task, restore
from medray.types import DISCLAIMER

_MARKS = (  # Markdown syntax: anywhere in a line, and at its start
    re.compile(r"()([\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))"),
    re.compile(r"^(\s*)([#+=-])", re.MULTILINE),
    re.compile(r"^(\s*\d+)([.)])", re.MULTILINE),
)


@dataclass(frozen=True)
class MetricFact:
    metric: str
    validation: float | None
    test: float | None


@dataclass(frozen=True)
class Facts:
    task: str
    base: str
    note: str  # on the base's weights
    method: str
    labels: tuple[str, ...]
    figures: tuple[MetricFact, ...]
    num_test_rows: int | None  # None if the test labels are unopened
    openings: str  # a sentence, or empty
    merge: MergeRecord | None
    # Sentences on confidence, abstention and the lowest slice, as far as the study measured them.
    behavior: tuple[str, ...]
    origin: tuple[tuple[str, str], ...]  # names and values of base, data, training and code


def describe(
    manifest: Manifest,
    content_id: str,
    test: TestRecord | None,
    merge: MergeRecord | None,
    calibration: CalibrationRecord = AS_IT_IS,
) -> Facts:
    """Return the facts about a checkpoint. It need not be published."""
    base, state = manifest.base, manifest.task.state
    validation, on_test = manifest.metrics, test.metrics if test else {}
    return Facts(
        task=str(manifest.task.options["name"]),
        base=base.source,
        note=base.note,
        method=_method(manifest),
        labels=tuple(state.get("labels") or state.get("kinds", [])),
        figures=tuple(
            MetricFact(name, validation.get(name), on_test.get(name))
            for name in dict.fromkeys([*validation, *on_test])
        ),
        num_test_rows=test.num_rows if test else None,
        openings=_openings(test),
        merge=merge,
        behavior=_behavior(test, calibration),
        origin=(
            ("base", f"{base.source}, revision {base.revision}, weights sha256 {base.weight_hash}"),
            (
                "data",
                f"{manifest.data_fingerprint}, split: {manifest.split_fingerprint}"
                if manifest.data_fingerprint
                else "unknown",
            ),
            ("training", _training(manifest)),
            ("code", _code(manifest)),
            ("checkpoint", content_id),
        ),
    )


def describe_release(record: ReleaseRecord, manifest: Manifest) -> Facts:
    return describe(manifest, record.content_id, record.test, record.merge, record.calibration)


def test_record(board: Leaderboard, entry: Entry, analysis: Analysis | None) -> TestRecord:
    """Return a candidate's metrics on test rows, and its calibration there if the study analyzed
    it."""
    record = TestRecord(
        metrics=dict(entry.test),
        num_rows=board.num_rows["test"],
        num_openings=board.num_openings,
        num_seeds=entry.seeds.num_seeds if entry.seeds else 1,
        num_folds=board.num_folds,
    )
    model = analysis.of(entry.name) if analysis else None
    if model is None:
        return record
    test, rule = model.test, model.test.abstention
    behavior = {
        "ece": (test.before.ece, test.after.ece),
        "answered": (rule.coverage, rule.precision.value) if rule and rule.precision else None,
        "worst_slice": _slice_record(test.worst, test.metric) if test.worst else None,
    }
    return record.model_copy(update=behavior)


def render(record: ReleaseRecord, manifest: Manifest, *, merged: bool) -> str:
    """Return the model card of the adapter or of the merged model, in Markdown."""
    facts = describe_release(record, manifest)
    header = {
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": _pipeline(restore(manifest.task.options, manifest.task.state)),
        "base_model": facts.base,
        "tags": ["medray", "biomedical", "merged" if merged else "lora"],
    }
    note = f" ({_line(facts.note)})" if facts.note else ""
    labels = f" Labels: {', '.join(map(_line, facts.labels))}." if facts.labels else ""
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        f"# {record.name}, version {record.version}",
        "",
        f"{facts.task} by {_line(facts.base)}{note} with {facts.method}.{labels}",
        "",
        DISCLAIMER,
        "",
        *_figures(facts),
        *(line for sentence in facts.behavior for line in ("", _line(sentence))),
        "",
        "## Origin",
        "",
        *(f"- {name}: {_line(value)}" for name, value in facts.origin),
    ]
    if record.task_options:
        options = (
            f"- task.{_line(name)}: {_line(value)}" for name, value in record.task_options.items()
        )
        lines += ["", "## Changes since training", "", *options]
    if record.notes:
        lines += ["", "## Notes", "", _text(record.notes)]
    return "\n".join(lines) + "\n"


def _pipeline(task: Task) -> str:
    """Return the Hub's name of the model's purpose."""
    head = task.head()
    if head is not None and head.per_token:
        return "token-classification"
    return "text-classification" if task.labels or head else "text-generation"


def format_figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _method(manifest: Manifest) -> str:
    if manifest.is_untuned:
        return "no training" + (
            "" if manifest.quantization == "none" else f", in 4 bits ({manifest.quantization})"
        )
    return "LoRA" if manifest.quantization == "none" else f"QLoRA ({manifest.quantization})"


def _training(manifest: Manifest) -> str:
    if manifest.is_untuned:
        return "none: a base model"
    if manifest.data_fingerprint is None:
        return "by other software: imported from an adapter's folder"
    return (
        f"seed {manifest.seed}, epoch {manifest.cursor['epoch']}, step {manifest.cursor['step']}, "
        f"precision {manifest.precision.actual}"
    )


def _code(manifest: Manifest) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in manifest.versions.items())
    return f"{manifest.git_commit or 'unknown commit'}; {versions}"


def _openings(test: TestRecord | None) -> str:
    if test is None:
        return "The test labels are unopened. These are the validation metrics of the selection."
    if test.num_openings > 1:
        return (
            f"The test labels of this split were opened {test.num_openings} times. Metrics known "
            "before a selection are not a test of it."
        )
    return ""


def _behavior(test: TestRecord | None, calibration: CalibrationRecord) -> tuple[str, ...]:
    sentences, rule = [], calibration.abstention
    if test and test.num_seeds > 1:
        sentences.append(
            f"Test metrics are means over {test.num_seeds} trainings with different seeds. This "
            "release is the best of them on validation rows."
        )
    if test and test.num_folds > 1:
        sentences.append(
            f"Test metrics pool the predictions of {test.num_folds} folds, each on rows outside "
            "its training."
        )
    if test and test.ece:
        sentences.append(
            f"Confidence: temperature {calibration.temperature:.2f}, fitted on "
            f"{calibration.num_rows} validation rows;"
            f" expected calibration error on test rows {test.ece[0]:.3f} before, {test.ece[1]:.3f} "
            "after."
        )
    if rule and rule.threshold is None:
        sentences.append(
            f"Abstention: no threshold reaches a precision of {rule.precision}, so the release "
            "always abstains."
        )
    elif rule:
        on_test = (
            (
                f" On test rows the coverage is {test.answered[0]:.0%} and the precision "
                f"{test.answered[1]:.3f}."
            )
            if test and test.answered
            else ""
        )
        sentences.append(
            f"Abstention: below a confidence of {rule.threshold:.3f}, for a precision of "
            f"{rule.precision}.{on_test}"
        )
    if test and (worst := test.worst_slice):
        verdict = "significantly below all rows" if worst.is_below else "within chance of all rows"
        sentences.append(
            f"Lowest slice of the test rows: {worst.column} {worst.value}, {worst.metric} "
            f"{worst.f1:.3f}"
            f" (95 % interval {worst.low:.3f} to {worst.high:.3f}) on {worst.num_rows} rows, of "
            f"{worst.num_compared} slices compared, {verdict}."
        )
    return tuple(sentences)


def _slice_record(worst: WorstSlice, metric: str) -> SliceRecord:
    rows = worst.slice
    assert rows.f1 is not None  # a comparison needs it
    return SliceRecord(
        column=rows.column,
        value=rows.value,
        num_rows=rows.num_rows,
        metric=metric,
        f1=rows.f1.value,
        low=rows.f1.low,
        high=rows.f1.high,
        num_compared=worst.num_compared,
        is_below=worst.is_below,
    )


def _figures(facts: Facts) -> list[str]:
    has_test, merge = facts.num_test_rows is not None, facts.merge
    lines = ["## Metrics", "", *([facts.openings, ""] if facts.openings else [])]
    lines += [
        "| metric | validation |" + (f" test ({facts.num_test_rows} rows) |" if has_test else ""),
        "| --- | ---: |" + (" ---: |" if has_test else ""),
    ]
    for figure in facts.figures:
        test = f" {format_figure(figure.test)} |" if has_test else ""
        lines.append(f"| {_line(figure.metric)} | {format_figure(figure.validation)} |{test}")
    if merge:
        lines += [
            "",
            (
                f"Validation {_line(merge.metric)}: {merge.unmerged:.4f} in 4 bits, "
                f"{merge.merged:.4f} merged."
            ),
        ]
    return lines


def _text(value: object) -> str:
    """Return text from outside with escapes, so that it forms no HTML, link, table or heading."""
    text = html.escape("\n".join(str(value).splitlines()), quote=False)
    for mark in _MARKS:
        text = mark.sub(r"\1\\\2", text)
    return text


def _line(value: object) -> str:
    return _text(" ".join(str(value).split()))
