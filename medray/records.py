"""Records of trials and releases on disk. A release's records are written once and never change."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from medray.config.schema import Section
from medray.types import QuestionKind

MERGE_LIMIT = 0.005  # the largest difference in F1 that a merge may cause
SETTINGS = "study.yaml"  # in a run's folder
SAMPLES = "samples.json"  # in a run's folder: example answers of the finalists
HISTORY = "history.json"  # in a trial's folder: every evaluation so far
# A name becomes a path, so it is validated where it is parsed.
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # sha256
Name = Annotated[str, Field(pattern=NAME)]
Version = Annotated[int, Field(ge=1, lt=10**9)]


class TestRecord(Section):
    """Metrics on test rows, and how often the labels of these rows were opened before."""

    __test__ = False  # not a test class

    metrics: dict[str, float]
    num_rows: int
    num_openings: int
    ece: tuple[float, float] | None = None  # before and after calibration
    # With a required precision: the coverage and the precision on test rows.
    answered: tuple[float, float] | None = None
    worst_slice: "SliceRecord | None" = None
    num_seeds: int = 1  # above 1: metrics are means over trainings that differ in the seed alone
    num_folds: int = 1  # above 1: pooled predictions, one model per fold, each on unseen rows


class MergeRecord(Section):
    """F1 on validation rows of a 4-bit model and of the plain model that it is merged into. A merge
    of other models is exact."""

    metric: str
    unmerged: float
    merged: float

    @property
    def is_faithful(self) -> bool:
        return round(abs(self.merged - self.unmerged), 6) <= MERGE_LIMIT


class AbstentionRecord(Section):
    """The release abstains below a threshold, so that its other answers reach the required
    precision."""

    precision: float  # required share of correct answers
    level: float  # confidence level of the guarantee
    # On the calibrated confidence. None: no threshold reaches the precision, and the release always
    # abstains.
    threshold: float | None
    coverage: float  # share of validation rows with an answer


class AnswerCalibrationRecord(Section):
    """The calibration of answers to typed questions."""

    temperatures: dict[QuestionKind, Annotated[float, Field(ge=0.01, le=100)]] = {}
    abstention: dict[str, AbstentionRecord] = {}  # by the name of a question, or by its kind
    by_kind: bool = False  # for rows with questions of their own, or with too many


class TextCalibrationRecord(Section):
    """The chance that a generated answer is right: a logistic curve of its tokens'
    log-probabilities."""

    intercept: float
    mean: float  # weight of the mean log-probability
    least: float  # weight of the lowest one


class CalibrationRecord(Section):
    """The calibration that a release applies to each prediction, fitted on validation rows. The
    defaults change nothing."""

    # It divides the logarithms of the probabilities. The bounds are wider than the range of a fit.
    temperature: float = Field(1.0, ge=0.01, le=100)
    abstention: AbstentionRecord | None = None
    num_rows: int = 0  # of the fit
    answers: AnswerCalibrationRecord | None = None  # None: no answers to typed questions
    texts: TextCalibrationRecord | None = None  # None: generated answers have no confidence


AS_IT_IS = CalibrationRecord()


class SliceRecord(Section):
    """The slice of the test rows with the lowest F1."""

    column: str
    value: str
    num_rows: int
    metric: str
    f1: float
    low: float
    high: float
    num_compared: int
    is_below: bool


class ProbeRecord(Section):
    """A release's calibrated answers to its checkpoint's probe. They change if the record or the
    manifest changes."""

    labels: tuple[str, ...]  # or kinds of mentions, in the order of the outputs
    answers: tuple[tuple[str, ...], ...] = ()  # labels per text, for tasks that predict labels
    probabilities: tuple[tuple[float, ...], ...] = ()


class ReleaseRecord(Section):
    """The record of a version. It is written once."""

    schema_version: Literal[1] = 1
    name: Name
    version: Version
    content_id: Hash  # of the checkpoint's manifest, which holds the hash of every other file
    created: str
    test: TestRecord | None = None
    merge: MergeRecord | None = None
    calibration: CalibrationRecord = AS_IT_IS
    # Written by an earlier medray, which served in 8 bits. It is accepted and ignored.
    int8: Any = Field(None, exclude=True)
    notes: str = ""
    task_options: dict[str, Any] = Field(
        {}, description="task options that replace those of the training"
    )
    probe: ProbeRecord | None = None  # None in a release of an earlier medray


class Move(Section):
    """One move of an alias to a version."""

    version: Version
    record: Hash | None = None  # of the version's record; None in a move of an earlier medray
    time: str
    by: str


class TrialRecord(Section):
    """A trial of a study: its settings, its status and its times."""

    trial: str
    base_model: str
    base: int  # its position in the study's base_models
    number: int  # among the trials of this base model
    settings: dict[str, Any]  # sampled by the search
    of: str | None = None  # the finalist that it repeats with another seed or fold
    seed: int = 0  # added to the study's seed
    fold: int = 0  # the fold that it is evaluated on, with pooled folds
    status: Literal["running", "finished", "stopped", "failed"] = "running"
    error: str | None = None
    started_at: float | None = None  # seconds of the epoch
    first_step_at: float | None = None
    ended_at: float | None = None
    num_parameters: int | None = None
    num_trainable: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """A trial's metrics on validation rows after one of its steps."""

    epoch: int  # of the step, from 1
    step: int
    train_loss: float  # over the training rows since the previous evaluation
    metrics: dict[str, float]
    is_best: bool  # so far
    epochs: float  # trained so far, as a fraction; schedulers compare trials by it
    is_last: bool
    seconds: float  # of training since the start, without evaluations
    tokens_per_s: float  # without padding
    # Inside the first epoch and on part of the rows. It ranks no trial and has no checkpoint.
    is_early: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as an earlier medray wrote them, without `is_early` where it is
        false."""
        values = asdict(self)
        if not self.is_early:
            del values["is_early"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build an evaluation from its dict and ignore fields of an earlier medray."""
        names = (field.name for field in fields(cls))
        return cls(**{name: values[name] for name in names if name in values})


def dump_history(history: Sequence[Evaluation]) -> bytes:
    return json.dumps([evaluation.as_dict() for evaluation in history]).encode()


def parse_history(content: bytes) -> list[Evaluation]:
    return [Evaluation.from_dict(values) for values in json.loads(content)]
