"""What is told of a trained model, wherever it is told: the model card and the report take their figures from here."""

from collections.abc import Mapping
from dataclasses import dataclass

from medray.checkpoint import Manifest
from medray.records import AS_IT_IS, CalibrationRecord, Int8Record, MergeRecord, TestRecord

DISCLAIMER = "Research software, not a medical device: no diagnosis, no treatment decision."


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
    int8: Int8Record | None = None,
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
        behaviour=(*_behaviour(test, calibration), *([in_8_bits(int8)] if int8 else [])),
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


def in_8_bits(record: Int8Record) -> str:
    verdict = "it may be served so" if record.is_faithful else "it is never served so"
    return (
        f"In 8 bits (int8): validation {record.metric} {record.int8:.4f} instead of {record.plain:.4f},"
        f" {record.agreement:.1%} of {record.num_rows} rows answered alike: {verdict}."
    )


def _behaviour(test: TestRecord | None, calibration: CalibrationRecord) -> list[str]:
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
    return said
