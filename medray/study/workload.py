"""The training work of a base model: number of rows, and their length in its tokens."""

import math
from dataclasses import dataclass

from medray.config.trial import TrialConfig
from medray.data.dataset import Dataset
from medray.errors import ArtifactError
from medray.models import sources
from medray.models.build import load_tokenizer
from medray.tasks.base import protocol as tasks
from medray.tasks.base.branches import BranchLoss, HeadBranchLoss
from medray.tasks.base.encoders import for_base
from medray.tasks.base.language_model import LanguageModelLoss
from medray.tasks.base.protocol import Task

_TOKENS_PER_WORD = 1.5  # without a tokenizer
_NUM_SAMPLES = 200
_LABEL_TOKENS = 8


@dataclass(frozen=True)
class Workload:
    """Rows of a base model, in its tokens."""

    num_train: int
    num_validation: int
    mean: float
    longest: int
    num_labels: int
    answer_tokens: int
    lengths_from: str  # how the lengths are known
    # The most rows that a micro-batch cannot part: the options of a text's questions, for encoders.
    least_rows: int = 1


def measure_workload(
    trial: TrialConfig, dataset: Dataset | None, task: Task | None, num_rows: int
) -> Workload:
    """Encode a sample of the training rows. Without data, count `num_rows` rows of full length."""
    longest = int(trial.task.model_dump()["max_length"])
    if dataset is None or task is None:
        num_validation = round(num_rows * trial.data.split.validation)
        return Workload(
            min(num_rows, trial.data.limit or num_rows),
            num_validation,
            longest,
            longest,
            2,
            _answer_tokens(trial),
            "max_length for each row",
        )
    task = for_base(
        tasks.fit(trial.task, dataset.label_sets(), dataset.train),
        trial.model.source,
        trial.model.revision,
    )
    num_train = min(len(dataset.train), trial.data.limit or len(dataset.train))
    sample = dataset.train[:: max(1, len(dataset.train) // _NUM_SAMPLES)]
    head = task.head()
    num_labels = len(head.labels) if head else 0
    try:
        tokenizer = load_tokenizer(sources.config_dir(trial.model.source, trial.model.revision))
    except ArtifactError:
        mean = sum(
            min(longest, _TOKENS_PER_WORD * len(example.text.split())) for example in sample
        ) / len(sample)
        return Workload(
            num_train,
            len(dataset.validation),
            mean,
            longest,
            num_labels,
            _answer_tokens(trial),
            f"{_TOKENS_PER_WORD:g} tokens per word, without its tokenizer",
        )
    rows = task.encode(sample, tokenizer)
    lengths = [len(row.tokens) for row in rows]
    loss = task.loss([row.target for row in rows], [row.row_id for row in rows])
    answers = (
        [loss.num_tokens(row.target, len(row.tokens)) for row in rows]
        if isinstance(loss, LanguageModelLoss | BranchLoss)
        else [0]
    )
    mean = sum(lengths) / len(sample)  # a text in several windows is several rows
    least_rows = 1
    if isinstance(loss, HeadBranchLoss):  # each option is read in a row of its own
        shapes = [loss.shape(row.target) for row in rows]
        lengths, least_rows = [length for _, length in shapes], max(num for num, _ in shapes)
    return Workload(
        num_train,
        len(dataset.validation),
        mean,
        max(lengths),
        num_labels,
        max(answers),
        f"a sample of {len(sample)} rows",
        least_rows,
    )


def _answer_tokens(trial: TrialConfig) -> int:
    """Return the most tokens of an answer, without a tokenizer."""
    options = trial.task.model_dump()
    return int(options.get("max_new_tokens") or options.get("max_answer") or _LABEL_TOKENS)


def num_epochs(trial: TrialConfig, rows: Workload) -> float:
    steps = max(1, math.ceil(rows.num_train / trial.train.samples_per_step))
    return trial.train.epochs or (trial.train.max_steps or 0) / steps
