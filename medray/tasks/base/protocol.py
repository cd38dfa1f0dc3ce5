"""What a task promises: it turns examples into rows, outputs into a loss, and answers into figures.
It loads no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from medray import plugins
from medray.config.schema import PluginOptions, validate
from medray.errors import ArtifactError
from medray.evaluation.bootstrap import LabelResults, Results, Tallies
from medray.evaluation.metrics import Metrics
from medray.types import Encoded, Example, Head, Message, Needs, Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from medray.types import Engine

ChatOutcome = Literal["answered", "refused"]


class TaskOptions(PluginOptions):
    NEEDS: ClassVar[Needs] = "head"  # what is asked of a base, known before its data is read
    CHANGEABLE: ClassVar[
        tuple[str, ...]
    ] = ()  # what a release may have otherwise than its training

    def bring(self, num_train: int) -> list[Example]:
        """Rows that the task adds to the data, each naming its side; `num_train` are the data's own
        that train."""
        return []

    def samples(self) -> list[Example]:
        """Prompts of the user's own, which the report shows with answers from before and after
        training."""
        return []


@dataclass(frozen=True, slots=True)
class LossInputs:
    """What a loss reads of a micro-batch beside the model's outputs."""

    targets: Sequence[tuple[int, ...]]  # of each row
    weights: "Tensor"  # of each row
    mask: "Tensor"  # 1 at the tokens of each row, 0 at padding, on whichever side it is


class Loss(Protocol):
    """What training rows cost."""

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """Each row's share of a step, known before the step."""
        ...

    def __call__(self, outputs: Any, rows: LossInputs) -> "Tensor":
        """A weighted sum per row: never a mean, which micro-batching would change.

        `outputs` are the model's; of a `LanguageModelLoss` they are `AnswerLogits`.
        """
        ...


class Task(Protocol):
    """A file of medray/tasks: a class `Task` with this shape, and its pydantic `Options`.

    Small protocols say what some tasks have besides: `Calibrated` or `TallyTask`, `Chatting`, and
    `Served` of route.py."""

    @property
    def options(self) -> Any: ...

    @property
    def labels(self) -> tuple[str, ...]:
        """What the columns of probabilities and truth stand for. Without any, answers are texts:
        nothing is calibrated or sliced by label."""
        ...

    @classmethod
    def fit(cls, options: Any, examples: Sequence[Example], train: Sequence[Example] = ()) -> Self:
        """Learn what the data decides: the label set from examples of every split, texts unused;
        what a prompt shows from `train`."""
        ...

    @classmethod
    def restore(cls, options: Any, state: Mapping[str, Any]) -> Self: ...

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON; it travels in the checkpoint's manifest."""
        ...

    def head(self) -> Head | None: ...

    def encode(self, examples: Sequence[Example], tokenizer: Any) -> list[Encoded]:
        """Rows as the model reads them. The answer is never cut; what was truncated says so."""
        ...

    def loss(self, targets: Sequence[tuple[int, ...]], row_ids: Sequence[str]) -> Loss:
        """The loss of all training rows, from their targets."""
        ...

    def predict(self, engine: "Engine", examples: Sequence[Example]) -> list[Prediction]: ...

    def probe(self, engine: "Engine", examples: Sequence[Example]) -> npt.NDArray[np.float64]:
        """What the model says to examples, before anything is decided: a row of figures each, the
        same after every reload."""
        ...

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Metrics: ...


@runtime_checkable
class Calibrated(Task, Protocol):
    """A task whose answers are labels with probabilities. A task is either this or `TallyTask`."""

    def tune(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Self:
        """The task with what is fitted on validation (thresholds); itself where there is nothing to
        fit."""
        ...

    def decide(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """The predictions with labels by this task's current rule; probabilities stay."""
        ...

    def truth(self, examples: Sequence[Example]) -> npt.NDArray[np.bool_]:
        """The labels that are right, a row per example and a column per label."""
        ...

    def results(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> LabelResults:
        """Truth and predictions side by side, for intervals and comparisons."""
        ...

    def read_probe(self, outputs: npt.NDArray[np.float64]) -> list[Prediction]:
        """The answers that outputs of `probe` stand for, before calibration."""
        ...


@runtime_checkable
class TallyTask(Task, Protocol):
    """A task whose answers are texts or mentions, each of which adds to some counts."""

    def keep(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> list[Prediction]:
        """What a checkpoint keeps of its predictions: no text, but what `score` and `results` need
        of it."""
        ...

    def results(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Tallies:
        """The counts of each row, for intervals and comparisons."""
        ...


def task_options(options: PluginOptions) -> TaskOptions:
    assert isinstance(options, TaskOptions), (
        f"the options of task {options.name} are no TaskOptions"
    )
    return options


@runtime_checkable
class Chatting(Protocol):
    """A task that answers conversations has these besides; its options hold `system`,
    `max_new_tokens` and `disclaimer`."""

    @property
    def options(self) -> Any: ...

    def prompt(
        self, messages: Sequence[Message], tokenizer: Any, max_new_tokens: int
    ) -> tuple[int, ...]:
        """The task's system prompt first, one of the messages after it, as many turns as fit beside
        an answer of so many tokens."""
        ...

    def count_tokens(self, examples: Sequence[Example], tokenizer: Any) -> list[int]:
        """Of each whole conversation with its answer, before anything is cut."""
        ...

    def outcome(self, text: str) -> ChatOutcome: ...


def needs_of(options: PluginOptions) -> Needs:
    return options.NEEDS if isinstance(options, TaskOptions) else "head"


def fit(options: PluginOptions, examples: Sequence[Example], train: Sequence[Example] = ()) -> Task:
    """`examples` of every split, texts unused; `train` are training rows."""
    task: Task = plugins.find("tasks", options.name).Task.fit(options, examples, train)
    return task


def results(task: Task, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Results:
    """Truth and predictions side by side, for intervals and comparisons."""
    assert isinstance(task, Calibrated | TallyTask), (
        f"task {task.options.name} is neither Calibrated nor TallyTask"
    )
    return task.results(predictions, examples)


def without_texts(
    task: Task, predictions: Sequence[Prediction], examples: Sequence[Example]
) -> list[Prediction]:
    """What a checkpoint keeps of its predictions: no text."""
    if isinstance(task, TallyTask):
        return task.keep(predictions, examples)
    assert isinstance(task, Calibrated), (
        f"task {task.options.name} is neither Calibrated nor TallyTask"
    )
    return list(predictions)


def restore(options: Mapping[str, Any], state: Mapping[str, Any]) -> Task:
    """The task as a manifest describes it."""
    name = str(options.get("name"))
    module = plugins.find("tasks", name)
    valid_options = validate(module.Options, dict(options), where=f"task {name}")
    try:
        task: Task = module.Task.restore(valid_options, state)
    except (KeyError, TypeError, ValueError) as err:
        raise ArtifactError(
            f"task {name}: its state cannot be restored ({type(err).__name__} {err}); publish the "
            "checkpoint again"
        ) from None
    return task
