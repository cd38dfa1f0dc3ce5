"""What a model's answers look like behind their one figure: by class, by slice, by confidence. The
form of `analysis.json`.

Plain data, which the leaderboard's sentences, the model card, `medray review` and reports tell
from. Row ids, never a text."""

from dataclasses import dataclass
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from medray.errors import ArtifactError
from medray.records import CalibrationRecord


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassFigures:
    """One label against all others, as counts and figures; of a multi-label task this is its
    confusion matrix."""

    label: str
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    precision: float
    recall: float
    f1: Estimate


@dataclass(frozen=True)
class Bin:
    """Rows (multi-label: rows and labels) whose confidence is in `low` to `high`; empty bins are
    left out."""

    low: float
    high: float
    num: int
    confidence: float  # in the mean
    share_right: float  # multi-label: share of the labels that are there


@dataclass(frozen=True)
class Reliability:
    """Whether a confidence is what it says."""

    ece: (
        float  # expected calibration error: distance of confidence and share, in the mean over rows
    )
    log_loss: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class RiskPoint:
    """If rows below `threshold` were not answered."""

    threshold: float  # of the confidence after calibration
    coverage: float  # share of rows answered
    num_answered: int
    precision: float  # share of the answered rows that are right; risk is 1 less this


@dataclass(frozen=True)
class Abstention:
    """What the rule that was fitted on validation does to these rows."""

    wanted: float  # precision
    threshold: float | None  # None: no threshold could promise it, every row is abstained from
    num_answered: int
    coverage: float
    precision: Estimate | None  # of the rows answered (Clopper-Pearson); None where none is


@dataclass(frozen=True)
class SliceFigures:
    """Rows that share a value of a column. Column "label": that class's F1, over the rows that have
    it."""

    column: str
    value: str
    num_rows: int
    f1: (
        Estimate | None
    )  # None where the slice has too few rows or labels for the figure to mean something
    share_right: float  # of rows whose whole answer is right


@dataclass(frozen=True)
class WorstSlice:
    """The lowest F1 of all slices that have enough rows. Some slice is always the lowest:
    `is_below` says whether it is more than that."""

    slice: SliceFigures
    num_compared: int  # slices that had enough rows
    is_below: (
        bool  # even its interval widened for `num_compared` looks lies below the figure of all rows
    )


@dataclass(frozen=True)
class Mistake:
    row_id: str
    truth: tuple[str, ...]
    predicted: tuple[str, ...]
    confidence: float  # after calibration


@dataclass(frozen=True)
class Suspect:
    """A row whose given label the model doubts more than it does for other rows of that label."""

    row_id: str
    given: tuple[str, ...]
    suggested: tuple[str, ...]
    doubt: float  # how much more probable the suggestion is than what is given, 0 to 1


@dataclass(frozen=True)
class SplitAnalysis:
    split: Literal["train", "validation", "test", "all"]
    num_rows: int
    metric: str  # of `figure` and of the slices
    figure: Estimate
    confusion: tuple[
        tuple[int, ...], ...
    ]  # rows are the truth, columns the prediction; empty for multi-label
    per_class: tuple[ClassFigures, ...]
    before: Reliability  # of the model's own probabilities
    # calibrated; on validation rows, which calibration was fitted on, it looks better than it is
    after: Reliability
    risk_coverage: tuple[RiskPoint, ...]  # from full coverage down
    abstention: Abstention | None  # None where no precision was asked for
    slices: tuple[SliceFigures, ...]
    worst: WorstSlice | None
    mistakes: tuple[Mistake, ...]  # every one, the surest first
    suspects: tuple[Suspect, ...]  # the most doubtful first


@dataclass(frozen=True)
class ModelAnalysis:
    name: str  # as on the leaderboard
    calibration: CalibrationRecord
    validation: SplitAnalysis
    test: SplitAnalysis


@dataclass(frozen=True)
class Analysis:
    study: str
    labels: tuple[str, ...]
    multi_label: bool
    winner: str
    models: tuple[ModelAnalysis, ...]  # the winner first, then the other finalists
    schema_version: Literal[1] = 1

    @property
    def best(self) -> ModelAnalysis:
        return self.models[0]

    def of(self, name: str) -> ModelAnalysis | None:
        return next((model for model in self.models if model.name == name), None)


def sentences(model: ModelAnalysis) -> list[str]:
    """What test rows say of a model, beside its figure."""
    return split_sentences(model.test, model.calibration)


def split_sentences(analysis: SplitAnalysis, record: CalibrationRecord) -> list[str]:
    rows = f"{analysis.split} rows"
    lines = [f"confidence: expected calibration error on {rows} {analysis.before.ece:.3f}"]
    if record.temperature != 1:
        lines[0] += (
            f", and {analysis.after.ece:.3f} after temperature {record.temperature:.2f}, "
            f"fitted on {record.num_rows} validation rows"
        )
    if analysis.abstention:
        lines.append(_of_abstention(analysis.abstention, record, rows))
    if analysis.worst and (f1 := analysis.worst.slice.f1):
        worst = analysis.worst
        verdict = (
            "it lies below all rows, more than chance explains"
            if worst.is_below
            else "one of them always is; chance explains this"
        )
        lines.append(
            f"lowest slice of {rows}: {worst.slice.column} {worst.slice.value}, {analysis.metric} "
            f"{f1.value:.3f}"
            f" (95 % interval {f1.low:.3f} to {f1.high:.3f}) on {worst.slice.num_rows} rows, of "
            f"{worst.num_compared} slices compared: {verdict}"
        )
    return lines


def _of_abstention(abstention: Abstention, record: CalibrationRecord, rows: str) -> str:
    if abstention.precision is None:
        why = (
            f"{record.num_rows} validation rows promise it for no threshold"
            if abstention.threshold is None
            else "no row is sure enough"
        )
        return (
            f"abstention for precision {abstention.wanted}: {why}, so every answer is abstained "
            "from"
        )
    sure = f"(95 % interval {abstention.precision.low:.3f} to {abstention.precision.high:.3f})"
    return (
        f"abstention for precision {abstention.wanted}: {abstention.coverage:.0%} of {rows} are "
        f"answered (confidence from {abstention.threshold:.3f}),"
        f" {abstention.precision.value:.3f} {sure} of these rightly"
    )


def to_json(analysis: Analysis) -> bytes:
    return TypeAdapter(Analysis).dump_json(analysis, indent=1)


def from_json(text: str | bytes, where: str) -> Analysis:
    try:
        return TypeAdapter(Analysis).validate_json(text)
    except ValidationError as err:
        first = err.errors()[0]
        raise ArtifactError(
            f"{where}: is no analysis of this medray: {'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}"
        ) from None
