"""The model card of a release, in the Hub's format: every figure names its split."""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from medray.evaluation.analysis import Analysis, WorstSlice
from medray.evaluation.leaderboard import Entry, Leaderboard
from medray.records import AS_IT_IS, CalibrationRecord, MergeRecord, ReleaseRecord, SliceRecord, TestRecord
from medray.storage.checkpoint import Manifest
from medray.tasks.base.protocol import Task, restore
from medray.types import DISCLAIMER


@dataclass(frozen=True)
class Figure:
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
    figures: tuple[Figure, ...]
    num_test_rows: int | None  # None where test rows were not opened
    openings: str  # a sentence where that matters
    merge: MergeRecord | None
    behaviour: tuple[str, ...]  # confidence, abstention and the lowest slice, where its study measured them
    origin: tuple[tuple[str, str], ...]  # what it came from, by name


def of(
    manifest: Manifest,
    content_id: str,
    test: TestRecord | None,
    merge: MergeRecord | None,
    calibration: CalibrationRecord = AS_IT_IS,
) -> Facts:
    return Facts(
        task=str(manifest.task.options["name"]),
        base=manifest.base.source,
        note=manifest.base.note,
        method=_method(manifest),
        labels=tuple(manifest.task.state.get("labels") or manifest.task.state.get("kinds", [])),
        figures=figures(manifest.metrics, test.metrics if test else {}),
        num_test_rows=test.num_rows if test else None,
        openings=openings(test.num_openings if test else None),
        merge=merge,
        behaviour=_behaviour(test, calibration),
        origin=(
            ("base", f"{manifest.base.source}, revision {manifest.base.revision}, weights sha256 {manifest.base.weight_hash}"),
            ("data", f"{manifest.data_fingerprint}, split: {manifest.split_fingerprint}" if manifest.data_fingerprint else "not known"),
            ("training", _training(manifest)),
            (
                "code",
                f"{manifest.git_commit or 'no commit known'}; " + ", ".join(f"{name} {value}" for name, value in manifest.versions.items()),
            ),
            ("checkpoint", content_id),
        ),
    )


def _method(manifest: Manifest) -> str:
    if manifest.is_untuned:
        return "no training" + ("" if manifest.quantization == "none" else f", in 4 bits ({manifest.quantization})")
    return "LoRA" if manifest.quantization == "none" else f"QLoRA ({manifest.quantization})"


def _training(manifest: Manifest) -> str:
    if manifest.is_untuned:
        return "none: the base model as it is"
    if manifest.data_fingerprint is None:
        return "elsewhere: imported from an adapter's folder"
    return f"seed {manifest.seed}, epoch {manifest.cursor['epoch']}, step {manifest.cursor['step']}, arithmetic {manifest.precision.used}"


def figures(validation: Mapping[str, float], test: Mapping[str, float]) -> tuple[Figure, ...]:
    return tuple(Figure(name, validation.get(name), test.get(name)) for name in dict.fromkeys([*validation, *test]))


def shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def openings(num_openings: int | None) -> str:
    if num_openings is None:
        return "Test rows were not opened: the figures are those it was chosen by."
    if num_openings > 1:
        return f"The test labels of this split were opened {num_openings} times; figures seen before a choice are no longer a test."
    return ""


def _behaviour(test: TestRecord | None, calibration: CalibrationRecord) -> tuple[str, ...]:
    rule, said = calibration.abstention, []
    if test and test.num_seeds > 1:
        said.append(
            f"Test figures are means over {test.num_seeds} trainings that differ in their seed; this is the best on validation rows."
        )
    if test and test.num_folds > 1:
        said.append(f"Test figures are those of {test.num_folds} folds together, each row answered by a model that had not seen it.")
    if test and test.ece:
        said.append(
            f"Confidence: temperature {calibration.temperature:.2f}, fitted on {calibration.num_rows} validation rows;"
            f" expected calibration error on test rows {test.ece[0]:.3f} before, {test.ece[1]:.3f} after."
        )
    if rule and rule.threshold is None:
        said.append(f"Abstention: no threshold promises a precision of {rule.precision}: every answer is abstained from.")
    elif rule:
        on_test = (
            f" On test rows {test.answered[0]:.0%} are answered, {test.answered[1]:.3f} of these rightly." if test and test.answered else ""
        )
        said.append(f"Abstention: answers with a confidence below {rule.threshold:.3f}, for a precision of {rule.precision}.{on_test}")
    if test and (worst := test.worst_slice):
        verdict = "below all rows by more than chance explains" if worst.is_below else "which chance explains"
        said.append(
            f"Lowest slice of the test rows: {worst.column} {worst.value}, {worst.metric} {worst.f1:.3f}"
            f" (95 % interval {worst.low:.3f} to {worst.high:.3f}) on {worst.num_rows} rows, of {worst.num_compared} slices compared, {verdict}."
        )
    return tuple(said)


def test_record(board: Leaderboard, entry: Entry, analysis: Analysis | None) -> TestRecord:
    """Its figures on test rows, and how it behaves there where that was looked at."""
    record = TestRecord(
        metrics=dict(entry.test),
        num_rows=board.num_rows["test"],
        num_openings=board.num_openings,
        num_seeds=entry.seeds.num_seeds if entry.seeds else 1,
        num_folds=board.num_folds,
    )
    found = analysis.of(entry.name) if analysis else None
    if found is None:
        return record
    test = found.test
    rule, worst = test.abstention, test.worst
    answered = (rule.coverage, rule.precision.value) if rule and rule.precision else None
    behaviour = {
        "ece": (test.before.ece, test.after.ece),
        "answered": answered,
        "worst_slice": _slice(worst, test.metric) if worst else None,
    }
    return record.model_copy(update=behaviour)


def _slice(worst: WorstSlice, metric: str) -> SliceRecord:
    held = worst.slice
    assert held.f1 is not None  # or it would not have been compared
    return SliceRecord(
        column=held.column,
        value=held.value,
        num_rows=held.num_rows,
        metric=metric,
        f1=held.f1.value,
        low=held.f1.low,
        high=held.f1.high,
        num_compared=worst.num_compared,
        is_below=worst.is_below,
    )


_MARKS = (  # of Markdown: anywhere in a line, and at its start
    re.compile(r"()([\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))"),
    re.compile(r"^(\s*)([#+=-])", re.MULTILINE),
    re.compile(r"^(\s*\d+)([.)])", re.MULTILINE),
)


def _pipeline(task: Task) -> str:
    """The Hub's name of what a model is for."""
    head = task.head()
    if head is not None and head.per_token:
        return "token-classification"
    return "text-classification" if task.labels else "text-generation"


def render(record: ReleaseRecord, manifest: Manifest, *, merged: bool) -> str:
    told = of(manifest, record.content_id, record.test, record.merge, record.calibration)
    header = {
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": _pipeline(restore(manifest.task.options, manifest.task.state)),
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
