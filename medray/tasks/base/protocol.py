"""The protocol of tasks: a task turns examples into rows, outputs into a loss, and predictions into
metrics. It loads no model."""

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
from medray.text.windows import TokenWindows
from medray.types import (
    Encoded,
    Example,
    Head,
    Message,
    Needs,
    Prediction,
    Question,
    QuestionAnswer,
    TokenLogprob,
)

if TYPE_CHECKING:
    from torch import Tensor

    from medray.types import Engine

ChatOutcome = Literal["answered", "refused"]


class TaskOptions(PluginOptions):
    NEEDS: ClassVar[Needs] = "head"  # the kind of model, known before the data is read
    # The options that a release may change after training.
    CHANGEABLE: ClassVar[tuple[str, ...]] = ()

    def bring(self, num_train: int) -> list[Example]:
        """Return rows that the task adds to the data, each with its split. The data itself has
        `num_train` training rows."""
        return []

    def samples(self) -> list[Example]:
        """Return the user's own prompts. The report shows answers to them from before and after
        training."""
        return []


@dataclass(frozen=True, slots=True)
class LossInputs:
    """The inputs of a loss for a micro-batch, other than the model's outputs."""

    targets: Sequence[tuple[int, ...]]  # one per row
    weights: "Tensor"  # one per row
    mask: "Tensor"  # 1 at tokens, 0 at padding on either side


class Loss(Protocol):
    """The loss of the training rows."""

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """Return each row's weight in a step, which is known before the step."""
        ...

    def __call__(self, outputs: Any, rows: LossInputs) -> "Tensor":
        """Return a weighted sum per row, never a mean, which micro-batching would change.

        `outputs` are the model's outputs; a `LanguageModelLoss` takes `AnswerLogits`.
        """
        ...


class Task(Protocol):
    """Each module of medray/tasks has a class `Task` with these members, and its pydantic
    `Options`.

    Small protocols hold the further members of some tasks: `Calibrated` or `TallyTask`,
    `RowPredictor`, `Chatting`, `QuestionTask`, and `Served` in route.py."""

    @property
    def options(self) -> Any: ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Name the columns of probabilities and truth. A task without labels predicts texts or
        mentions, which are not calibrated or sliced by label."""
        ...

    @classmethod
    def fit(cls, options: Any, examples: Sequence[Example], train: Sequence[Example] = ()) -> Self:
        """Build the task for a data set. The labels come from the examples of all splits, whose
        texts are not read; the examples in a prompt come from `train`."""
        ...

    @classmethod
    def restore(cls, options: Any, state: Mapping[str, Any]) -> Self: ...

    def state(self) -> dict[str, Any]:
        """Return the state for `restore` as JSON, which the checkpoint's manifest holds."""
        ...

    def head(self) -> Head | None: ...

    def encode(self, examples: Sequence[Example], tokenizer: Any) -> list[Encoded]:
        """Return rows as the model reads them. Texts may be truncated, but answers never are."""
        ...

    def loss(self, targets: Sequence[tuple[int, ...]], row_ids: Sequence[str]) -> Loss:
        """Return the loss of all training rows, from their targets."""
        ...

    def predict(self, engine: "Engine", examples: Sequence[Example]) -> list[Prediction]: ...

    def probe(self, engine: "Engine", examples: Sequence[Example]) -> npt.NDArray[np.float64]:
        """Return the model's raw outputs for examples, one row each, which must be the same after
        each reload."""
        ...

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Metrics: ...


@runtime_checkable
class Calibrated(Task, Protocol):
    """A task that predicts labels with probabilities. Every task is this or a `TallyTask`."""

    def tune(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Self:
        """Return the task with thresholds that are fitted on validation rows, or the same task if
        it has none."""
        ...

    def decide(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """Return the predictions with labels by this task's thresholds and the same
        probabilities."""
        ...

    def truth(self, examples: Sequence[Example]) -> npt.NDArray[np.bool_]:
        """Return the right labels, with one row per example and one column per label."""
        ...

    def results(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> LabelResults:
        """Return truth and predictions of each row, for intervals and comparisons."""
        ...

    def read_probe(self, outputs: npt.NDArray[np.float64]) -> list[Prediction]:
        """Return the predictions for outputs of `probe`, before calibration."""
        ...


@runtime_checkable
class TallyTask(Task, Protocol):
    """A task that predicts texts or mentions, whose metrics follow from counts per row."""

    def keep(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> list[Prediction]:
        """Return the predictions without texts, for a checkpoint, with the counts that `score` and
        `results` read."""
        ...

    def results(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Tallies:
        """Return the counts of each row, for intervals and comparisons."""
        ...


@runtime_checkable
class RowPredictor(Task, Protocol):
    """A task that can predict from rows of `encode`, so that no text is tokenized twice."""

    def predict_rows(
        self, engine: "Engine", examples: Sequence[Example], rows: Sequence[Encoded]
    ) -> list[Prediction]:
        """Return what `predict` returns for these examples, whose ids differ."""
        ...


@runtime_checkable
class Explainable(Task, Protocol):
    """A task whose head reads rows of tokens, so that each token has a share in its outputs."""

    def token_windows(self, text: str, tokenizer: Any) -> TokenWindows:
        """Return the rows of `encode` for a text, with the place of each token in it."""
        ...


def task_options(options: PluginOptions) -> TaskOptions:
    assert isinstance(options, TaskOptions), (
        f"the options of task {options.name} are not TaskOptions"
    )
    return options


@runtime_checkable
class Chatting(Protocol):
    """A task that answers conversations. Its options include `system`, `max_new_tokens` and
    `disclaimer`."""

    @property
    def options(self) -> Any: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    def head(self) -> Head | None: ...

    def prompt(
        self, messages: Sequence[Message], tokenizer: Any, max_new_tokens: int
    ) -> tuple[int, ...]:
        """Return the tokens of a conversation: the task's system prompt, that of the messages, and
        as many turns as leave room for the answer."""
        ...

    def answer(self, text: str, tokenizer: Any) -> tuple[int, ...]:
        """Return the tokens of an answer after a prompt, with the end of its turn."""
        ...

    def count_tokens(self, examples: Sequence[Example], tokenizer: Any) -> list[int]:
        """Return the length of each whole conversation with its answer, before truncation."""
        ...

    def outcome(self, text: str) -> ChatOutcome: ...

    def features(self, text: str, logprobs: Sequence[TokenLogprob]) -> dict[str, float]:
        """Return what the confidence of an answer follows from, or nothing if it has none."""
        ...


@runtime_checkable
class QuestionTask(Task, Protocol):
    """A task that is trained on typed questions. Other tasks with labels answer questions about
    their labels (questions.py)."""

    @property
    def questions(self) -> tuple[Question, ...]:
        """Return the questions that it was trained for."""
        ...

    @property
    def has_more(self) -> bool:
        """Return whether its training rows have more questions than `questions`, so that they are
        those of single rows."""
        ...

    @property
    def takes_any_question(self) -> bool:
        """Return whether it also answers questions that it was not trained for."""
        ...

    def with_answers(self, examples: Sequence[Example]) -> list[Example]:
        """Return examples with their questions and, where they are known, the right answers."""
        ...

    def question_rows(self, text: str, questions: Sequence[Question]) -> list[Example]:
        """Return the rows to predict, which answer all questions about a text."""
        ...

    def read_answers(
        self, predictions: Sequence[Prediction], questions: Sequence[Question]
    ) -> list[QuestionAnswer]:
        """Return one answer per question, from calibrated predictions of `question_rows`. Each has
        its question's name and order of options."""
        ...


@runtime_checkable
class EncoderTask(Protocol):
    """A task of language models that encoders can do too, with a head."""

    def for_encoder(self) -> Task:
        """Return the task as an encoder does it."""
        ...


@runtime_checkable
class GradedTexts(Protocol):
    """A task that generates texts, and can say which of them are right."""

    @property
    def has_grades(self) -> bool:
        """Return whether its options say what is right."""
        ...

    def grade(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> list[bool]:
        """Return whether each answer is right, from its text or its figures."""
        ...


def has_confident_texts(task: Task) -> bool:
    return isinstance(task, GradedTexts) and task.has_grades


def needs_of(options: PluginOptions) -> Needs:
    return options.NEEDS if isinstance(options, TaskOptions) else "head"


def fit(options: PluginOptions, examples: Sequence[Example], train: Sequence[Example] = ()) -> Task:
    """Build a task from its options and the data; see `Task.fit`."""
    task: Task = plugins.find("tasks", options.name).Task.fit(options, examples, train)
    return task


def results(task: Task, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Results:
    """Return truth and predictions of each row, for intervals and comparisons."""
    assert isinstance(task, Calibrated | TallyTask), (
        f"task {task.options.name} is neither Calibrated nor TallyTask"
    )
    return task.results(predictions, examples)


def without_texts(
    task: Task, predictions: Sequence[Prediction], examples: Sequence[Example]
) -> list[Prediction]:
    """Return predictions as a checkpoint keeps them, without texts."""
    if isinstance(task, TallyTask):
        return task.keep(predictions, examples)
    assert isinstance(task, Calibrated), (
        f"task {task.options.name} is neither Calibrated nor TallyTask"
    )
    return list(predictions)


def restore(options: Mapping[str, Any], state: Mapping[str, Any]) -> Task:
    """Return the task that a manifest describes."""
    name = str(options.get("name"))
    module = plugins.find("tasks", name)
    valid_options = validate(module.Options, dict(options), where=f"task {name}")
    try:
        task: Task = module.Task.restore(valid_options, state)
    except (KeyError, TypeError, ValueError) as err:
        raise ArtifactError(
            f"task {name}: the state cannot be restored ({type(err).__name__} {err}); publish the "
            "checkpoint again"
        ) from None
    return task
