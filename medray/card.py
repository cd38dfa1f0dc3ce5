"""The model card of a release, in the Hub's format: every figure names its split."""

import yaml

from medray.checkpoint import Manifest
from medray.records import ReleaseRecord


def render(record: ReleaseRecord, manifest: Manifest, *, merged: bool) -> str:
    labels = manifest.task.state.get("labels", [])
    header = {
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": "text-classification",
        "base_model": manifest.base.source,
        "tags": ["medray", "biomedical", "merged" if merged else "lora"],
    }
    note = f" ({manifest.base.note})" if manifest.base.note else ""
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        f"# {record.name}, version {record.version}",
        "",
        f"{manifest.task.options['name']} by {manifest.base.source}{note} with {_method(manifest)}. Labels: {', '.join(labels)}.",
        "",
        "Research software, not a medical device: no diagnosis, no treatment decision.",
        "",
        *_figures(record, manifest),
        *_behaviour(record),
        "",
        "## Where it comes from",
        "",
        f"- base: {manifest.base.source}, revision {manifest.base.revision}, weights sha256 {manifest.base.weight_hash}",
        f"- data: {manifest.data_fingerprint}, split: {manifest.split_fingerprint}",
        f"- seed {manifest.seed}, epoch {manifest.cursor['epoch']}, step {manifest.cursor['step']}, arithmetic {manifest.precision.used}",
        f"- code: {manifest.git_commit or 'no commit known'}; " + ", ".join(f"{name} {value}" for name, value in manifest.versions.items()),
        f"- checkpoint: {record.content_id}",
    ]
    if record.notes:
        lines += ["", "## Notes", "", record.notes]
    return "\n".join(lines) + "\n"


def _method(manifest: Manifest) -> str:
    return "LoRA" if manifest.quantization == "none" else f"QLoRA ({manifest.quantization})"


def _figures(record: ReleaseRecord, manifest: Manifest) -> list[str]:
    test = record.test
    lines = ["## Figures", ""]
    if test is None:
        lines += ["Test rows were not opened for this release: the figures are those it was chosen by.", ""]
    elif test.num_openings > 1:
        lines += [
            f"The test labels of this split were opened {test.num_openings} times; figures seen before a choice are no longer a test.",
            "",
        ]
    lines += [
        "| metric | validation |" + (f" test ({test.num_rows} rows) |" if test else ""),
        "| --- | ---: |" + (" ---: |" if test else ""),
    ]
    for name, value in manifest.metrics.items():
        lines.append(f"| {name} | {value:.4f} |" + (f" {test.metrics[name]:.4f} |" if test else ""))
    if record.merge:
        lines += ["", f"Validation {record.merge.metric} in 4 bits {record.merge.unmerged:.4f}, merged {record.merge.merged:.4f}."]
    return lines


def _behaviour(record: ReleaseRecord) -> list[str]:
    """Confidence, abstention and the lowest slice, where the release's study measured them."""
    test, rule, said = record.test, record.calibration.abstention, []
    if test and test.ece:
        said.append(
            f"Confidence: temperature {record.calibration.temperature:.2f}, fitted on {record.calibration.num_rows} validation rows;"
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
    return [line for sentence in said for line in ("", sentence)]
