"""What is stored of a trial and of a release. A release's records are written once and never
changed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from medray.config.schema import Section

MERGE_LIMIT = 0.005  # of F1: what a merge may move it by
SETTINGS = "study.yaml"  # in a run's folder, as are samples of what finalists answered
SAMPLES = "samples.json"
HISTORY = "history.json"  # in a trial's folder: every evaluation so far
# What becomes a path is checked here, where it is parsed.
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # sha256
Name = Annotated[str, Field(pattern=NAME)]
Version = Annotated[int, Field(ge=1, lt=10**9)]


class TestRecord(Section):
    """Figures on test rows, and how often these rows' labels were opened until then."""

    __test__ = False  # not a test class

    metrics: dict[str, float]
    num_rows: int
    num_openings: int
    ece: tuple[float, float] | None = None  # before and after calibration
    answered: tuple[float, float] | None = (
        None  # where a precision was asked for: coverage, and the precision found
    )
    worst_slice: "SliceRecord | None" = None
    num_seeds: int = 1  # more: figures are means over trainings that differ in their seed alone
    num_folds: int = 1  # more: pooled answers of as many models, each to rows that it had not seen


class MergeRecord(Section):
    """F1 on validation rows of a 4-bit model and of the plain one that it is merged into. Without 4
    bits a merge is exact."""

    metric: str
    unmerged: float
    merged: float

    @property
    def is_faithful(self) -> bool:
        return round(abs(self.merged - self.unmerged), 6) <= MERGE_LIMIT


class AbstentionRecord(Section):
    """Answers less sure than the threshold are abstained from, so that the others are right as
    often as was wanted."""

    precision: float  # wanted: share of the answered rows that are right
    level: float  # how sure it is that the threshold keeps to it
    threshold: (
        float | None
        # of the calibrated confidence; None: no threshold could promise it, everything is abstained
        # from
    )
    coverage: float  # share of validation rows that it answers


class CalibrationRecord(Section):
    """Fitted on validation rows, and obeyed wherever a release answers. As it is by default, it
    changes nothing."""

    temperature: float = Field(
        1.0, ge=0.01, le=100
    )  # wider than any fit looks; divides the logarithms of the probabilities
    abstention: AbstentionRecord | None = None
    num_rows: int = 0  # that it was fitted on


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
    """What a release answers to its checkpoint's probe, calibrated: another record or manifest
    gives other labels or probabilities."""

    labels: tuple[str, ...]  # or kinds of mentions, in the order of the outputs
    answers: tuple[tuple[str, ...], ...] = ()  # per text; of tasks whose answers are labels
    probabilities: tuple[tuple[float, ...], ...] = ()


class ReleaseRecord(Section):
    """What is stored for a version, once and for all."""

    schema_version: Literal[1] = 1
    name: Name
    version: Version
    content_id: (
        Hash  # sha256 of the checkpoint's manifest, which holds the hash of every other file
    )
    created: str
    test: TestRecord | None = None
    merge: MergeRecord | None = None
    calibration: CalibrationRecord = AS_IT_IS
    int8: Any = Field(
        None, exclude=True
    )  # of an earlier medray, which served in 8 bits: read, and neither used nor written
    notes: str = ""
    task_options: dict[str, Any] = Field(
        {}, description="of the task, in place of those that it was trained with"
    )
    probe: ProbeRecord | None = None  # None where an earlier medray published it


class Move(Section):
    """An alias was pointed at a version."""

    version: Version
    record: Hash | None = (
        None  # of the version's record as it was then; None where an earlier medray wrote it
    )
    time: str
    by: str


class TrialRecord(Section):
    """A trial of a study: what was asked of it, and how it went."""

    trial: str
    base_model: str
    base: int  # its position in the study's base_models
    number: int  # among the trials of this base model
    settings: dict[str, Any]  # what the search chose
    of: str | None = None  # the finalist that it trains again, with another seed or on another fold
    seed: int = 0  # added to the study's
    fold: int = 0  # whose rows judge it, where folds are pooled
    status: Literal["running", "finished", "stopped", "failed"] = "running"
    error: str | None = None
    started_at: float | None = None  # seconds of the epoch
    first_step_at: float | None = None
    ended_at: float | None = None
    num_parameters: int | None = None
    num_trainable: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """A trial on its validation rows, after one of its steps."""

    epoch: int  # that it ends or lies in, from 1
    step: int
    train_loss: float  # of the rows trained on since the evaluation before
    metrics: dict[str, float]
    is_best: bool  # so far
    epochs: float  # trained so far, in parts: what a scheduler compares trials by
    is_last: bool
    seconds: float  # of training since the start, evaluations left out
    tokens_per_s: float  # real tokens, padding not counted

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From its dict, which an earlier medray may have given more fields."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})


def dump_history(history: Sequence[Evaluation]) -> bytes:
    return json.dumps([evaluation.as_dict() for evaluation in history]).encode()


def parse_history(content: bytes) -> list[Evaluation]:
    return [Evaluation.from_dict(values) for values in json.loads(content)]
