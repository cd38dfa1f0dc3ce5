"""The model card of a release, in the Hub's format: every figure names its split."""

import yaml

from medray import facts
from medray.checkpoint import Manifest
from medray.facts import DISCLAIMER, Facts, shown
from medray.records import ReleaseRecord

_PIPELINES = {"tagging": "token-classification", "extraction": "text-generation"}  # the Hub's names


def render(record: ReleaseRecord, manifest: Manifest, *, merged: bool) -> str:
    told = facts.of(manifest, record.content_id, record.test, record.merge, record.calibration, record.int8)
    header = {
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": _PIPELINES.get(told.task, "text-classification" if told.labels else "text-generation"),
        "base_model": told.base,
        "tags": ["medray", "biomedical", "merged" if merged else "lora"],
    }
    note = f" ({told.note})" if told.note else ""
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        f"# {record.name}, version {record.version}",
        "",
        f"{told.task} by {told.base}{note} with {told.method}." + (f" Labels: {', '.join(told.labels)}." if told.labels else ""),
        "",
        DISCLAIMER,
        "",
        *_figures(told),
        *(line for sentence in told.behaviour for line in ("", sentence)),
        "",
        "## Where it comes from",
        "",
        *(f"- {name}: {value}" for name, value in told.origin),
    ]
    if record.task_options:
        lines += ["", "## Otherwise than in training", "", *(f"- task.{name}: {value}" for name, value in record.task_options.items())]
    if record.notes:
        lines += ["", "## Notes", "", record.notes]
    return "\n".join(lines) + "\n"


def _figures(told: Facts) -> list[str]:
    has_test = told.num_test_rows is not None
    lines = ["## Figures", "", *([told.openings, ""] if told.openings else [])]
    lines += [
        "| metric | validation |" + (f" test ({told.num_test_rows} rows) |" if has_test else ""),
        "| --- | ---: |" + (" ---: |" if has_test else ""),
    ]
    for figure in told.figures:
        lines.append(f"| {figure.metric} | {shown(figure.validation)} |" + (f" {shown(figure.test)} |" if has_test else ""))
    if told.merge:
        lines += ["", f"Validation {told.merge.metric} in 4 bits {told.merge.unmerged:.4f}, merged {told.merge.merged:.4f}."]
    return lines
