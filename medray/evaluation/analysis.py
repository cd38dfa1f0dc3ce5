"""The analysis of a model's predictions by class, by slice and by confidence: `analysis.json`.

The leaderboard's sentences, the model card, `medray review` and reports are made from these
values. They hold row ids and never a text."""

from dataclasses import dataclass
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from medray.errors import ArtifactError
from medray.records import CalibrationRecord

AnalysisSplit = Literal["train", "validation", "test", "all"]


@dataclass(frozen=True)
class Estimate:
    """A metric's value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassFigures:
    """Counts and metrics of one label against all others. A multi-label task has these instead of
    a confusion matrix."""

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
    """The rows whose confidence lies between `low` and `high`; empty bins are left out. In a
    multi-label task, each pair of a row and a label counts."""

    low: float
    high: float
    num: int
    confidence: float  # the mean of the bin
    share_right: float  # in a multi-label task: the share of these labels that the rows have


@dataclass(frozen=True)
class Reliability:
    """How well confidence matches accuracy."""

    # Expected calibration error: the mean distance between confidence and accuracy, over rows.
    ece: float
    log_loss: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class RiskPoint:
    """The coverage and precision if the model abstained below `threshold`."""

    threshold: float  # on the confidence after calibration
    coverage: float  # share of rows answered
    num_answered: int
    precision: float  # share of the answered rows that are right; risk is 1 minus precision


@dataclass(frozen=True)
class Abstention:
    """The effect on these rows of the abstention rule that was fitted on validation rows."""

    wanted: float  # the target precision
    threshold: float | None  # None: no threshold guarantees it, so the model abstains on every row
    num_answered: int
    coverage: float
    precision: Estimate | None  # of the answered rows (Clopper-Pearson); None if there are none


@dataclass(frozen=True)
class SliceFigures:
    """Metrics of the rows that share a value of a column. A slice of the column "label" holds the
    rows of one class and that class's F1."""

    column: str
    value: str
    num_rows: int
    f1: Estimate | None  # None: the slice has too few rows or labels for a meaningful F1
    share_right: float  # share of rows whose labels are all right


@dataclass(frozen=True)
class WorstSlice:
    """The slice with the lowest F1 among those with enough rows. Some slice is always the lowest;
    `is_below` reports whether chance explains it."""

    slice: SliceFigures
    num_compared: int  # slices with enough rows
    # Whether its interval, widened for `num_compared` comparisons, lies below the F1 of all rows.
    is_below: bool


@dataclass(frozen=True)
class Mistake:
    row_id: str
    truth: tuple[str, ...]
    predicted: tuple[str, ...]
    confidence: float  # after calibration


@dataclass(frozen=True)
class Suspect:
    """A row whose label may be wrong: the model doubts it more than for other rows of that
    label."""

    row_id: str
    given: tuple[str, ...]  # the labels in the data
    suggested: tuple[str, ...]
    doubt: float  # probability of the suggestion minus that of the given label, 0 to 1


@dataclass(frozen=True)
class SplitAnalysis:
    split: AnalysisSplit
    num_rows: int
    metric: str  # of `figure` and of the slices
    figure: Estimate
    # Rows are the truth, columns the prediction; empty for a multi-label task.
    confusion: tuple[tuple[int, ...], ...]
    per_class: tuple[ClassFigures, ...]
    before: Reliability  # of the model's own probabilities
    # After calibration. Calibration is fitted on validation rows, so it is optimistic there.
    after: Reliability
    risk_coverage: tuple[RiskPoint, ...]  # from full coverage down
    abstention: Abstention | None  # None: no target precision is set
    slices: tuple[SliceFigures, ...]
    worst: WorstSlice | None
    mistakes: tuple[Mistake, ...]  # all mistakes, the most confident first
    suspects: tuple[Suspect, ...]  # the most doubtful first
    # Of answers to typed questions, whose own figures above are those of all questions.
    questions: "tuple[QuestionAnalysis, ...]" = ()


@dataclass(frozen=True)
class QuestionAnalysis:
    """The analysis of the answers to one typed question. The label of a row is its most probable
    right option."""

    name: str
    labels: tuple[str, ...]  # its options
    temperature: float
    figures: SplitAnalysis


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
    """Describe a model's test rows: calibration, abstention and the lowest slice."""
    return split_sentences(model.test, model.calibration)


def split_sentences(analysis: SplitAnalysis, record: CalibrationRecord) -> list[str]:
    rows = f"{analysis.split} rows"
    lines = [f"the expected calibration error on {rows} is {analysis.before.ece:.3f}"]
    if record.temperature != 1:
        lines[0] += (
            f", and {analysis.after.ece:.3f} with the temperature {record.temperature:.2f} "
            f"fitted on {record.num_rows} validation rows"
        )
    if analysis.questions:
        lines[0] += f", and {analysis.after.ece:.3f} after calibration"
    if analysis.abstention:
        lines.append(_abstention_sentence(analysis.abstention, record, rows))
    lines += [
        f"{part.name}: {_abstention_sentence(rule, record, rows)}"
        for part in analysis.questions
        if (rule := part.figures.abstention)
    ]
    if analysis.worst and (f1 := analysis.worst.slice.f1):
        worst = analysis.worst
        verdict = (
            "this is below the figure of all rows by more than chance explains"
            if worst.is_below
            else "chance explains this"
        )
        lines.append(
            f"the lowest of {worst.num_compared} slices of {rows} is {worst.slice.column} "
            f"{worst.slice.value} ({worst.slice.num_rows} rows): {analysis.metric} {f1.value:.3f} "
            f"(95 % interval {f1.low:.3f} to {f1.high:.3f}); {verdict}"
        )
    return lines


def _abstention_sentence(abstention: Abstention, record: CalibrationRecord, rows: str) -> str:
    goal = f"abstention for precision {abstention.wanted}"
    precision = abstention.precision
    if precision is None:
        reason = (
            f"no threshold reaches it with certainty on {record.num_rows} validation rows"
            if abstention.threshold is None
            else "no row has enough confidence"
        )
        return f"{goal}: {reason}, so the model abstains on every row"
    return (
        f"{goal}: the model answers {abstention.coverage:.0%} of {rows} (those with a confidence "
        f"of {abstention.threshold:.3f} or more) with a precision of {precision.value:.3f} "
        f"(95 % interval {precision.low:.3f} to {precision.high:.3f})"
    )


def to_json(analysis: Analysis) -> bytes:
    return TypeAdapter(Analysis).dump_json(analysis, indent=1)


def from_json(text: str | bytes, where: str) -> Analysis:
    try:
        return TypeAdapter(Analysis).validate_json(text)
    except ValidationError as err:
        first = err.errors()[0]
        raise ArtifactError(
            f"{where}: {'.'.join(map(str, first['loc']))} is not valid in an analysis of this "
            f"version ({first['msg']}); read it with the medray that wrote it"
        ) from None
