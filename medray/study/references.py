"""The baselines of a study on rows without labels: the majority answer, counted words, and a frozen
encoder. Typed questions have the first two, each per question. Regressions are searched as models
are, by the study's metric on validation rows."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from medray.config.load import public_settings
from medray.config.trial import TrialConfig
from medray.data.dataset import Dataset
from medray.errors import ArtifactError
from medray.evaluation import baselines
from medray.evaluation.answer_baselines import AnswerBaseline
from medray.evaluation.baselines import MOST_ROWS, Baseline, TrainingRows, ValidationRows
from medray.evaluation.calibration import is_multi_label
from medray.evaluation.leaderboard import Entry
from medray.evaluation.metrics import direction
from medray.models import architecture, sources
from medray.models.families import ENCODERS
from medray.study.candidates import Caller, Candidate, load_base_model
from medray.study.placement import Placement
from medray.study.run import slug
from medray.tasks.base.protocol import Calibrated, QuestionTask, Task
from medray.types import Example, Floats, Floats32, Prediction

log = logging.getLogger(__name__)
# A CPU reads a training row in 0.04 s by MiniLM and in some 0.3 s by BERT base, at 128 tokens.
MOST_ROWS_ON_CPU = 2_000


class FrozenEncoder:
    """The mean state of a base model's last layer, before training, as the features of a text.
    Each text is read once, in a process with the resources of a worker."""

    def __init__(self, config: TrialConfig, task: Task, placement: Placement, call: Caller) -> None:
        self.config, self.task, self.placement, self.call = config, task, placement, call
        self.ms_per_row = 0.0
        self._states: dict[str, Floats32] = {}
        self.most_rows = MOST_ROWS if placement.gpus else MOST_ROWS_ON_CPU

    @property
    def name(self) -> str:
        return f"frozen {slug(self.config.model.source)} + logistic regression"

    def read(self, texts: Sequence[str]) -> None:
        """Compute the features of the texts that are new."""
        new = list(dict.fromkeys(text for text in texts if text not in self._states))
        if not new:
            return
        config = self.config.model_dump(mode="json") | {"data": public_settings(self.config.data)}
        placement, state = self.placement, self.task.state()
        ((states, seconds),) = self.call(
            embed, [(config, state, new, placement.threads, placement.gpus)], placement
        )
        self.ms_per_row = 1000 * seconds / len(new)
        self._states |= dict(zip(new, states, strict=True))

    def fit_transform(self, texts: Sequence[str]) -> Floats32:
        return self.transform(texts)

    def transform(self, texts: Sequence[str]) -> Floats32:
        self.read(texts)
        return np.stack([self._states[text] for text in texts])


def embed(
    config: dict[str, Any],
    state: dict[str, Any],
    texts: Sequence[str],
    num_threads: int,
    num_gpus: float,
) -> tuple[Floats32, float]:
    """Return the features of texts, of unit length, and the seconds without loading. The windows
    of a long text are averaged."""
    task, engine = load_base_model(config, state, num_threads, num_gpus)
    rows = task.encode(
        [Example(str(number), text) for number, text in enumerate(texts)], engine.tokenizer
    )
    start = time.perf_counter()
    states = engine.mean_states([row.tokens for row in rows])
    seconds = time.perf_counter() - start
    features = np.zeros((len(texts), states.shape[1]), dtype=np.float32)
    np.add.at(features, [int(row.row_id) for row in rows], states)
    # The strengths of regularization are those of TF-IDF, whose rows have unit length too.
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return features, seconds


def frozen_encoder(
    configs: Sequence[TrialConfig], task: Task, placement: Placement, call: Caller
) -> FrozenEncoder | None:
    """Return the smallest encoder among the base models, or None where no base model is one."""
    if not isinstance(task, Calibrated) or task.head() is None:
        return None
    sizes = {number: size for number, config in enumerate(configs) if (size := _size(config))}
    if not sizes:
        log.info("no base model is an encoder, so no baseline reads texts by a frozen encoder")
        return None
    return FrozenEncoder(configs[min(sizes, key=sizes.__getitem__)], task, placement, call)


def _size(config: TrialConfig) -> int | None:
    """Return an encoder's number of parameters, or None for other and for unreadable models."""
    model = config.model
    try:
        folder = sources.config_dir(model.source, model.revision)
        network, family = architecture.outline(folder)
    except ArtifactError:
        return None
    if family.name not in ENCODERS:
        return None
    return int(sum(parameter.numel() for parameter in network.parameters()))


def baseline_candidates(
    task: Task, dataset: Dataset, rows: Sequence[Example], encoder: FrozenEncoder | None
) -> list[Candidate]:
    """Return the baselines, fitted on training rows, for a task that predicts labels or answers
    typed questions."""
    if isinstance(task, QuestionTask):
        return _answer_candidates(task, dataset, rows)
    if not isinstance(task, Calibrated):
        return []
    multi_label = is_multi_label(task)
    train = TrainingRows(_texts(dataset.train), task.truth(dataset.train), multi_label)
    validation = _validation_rows(task, dataset.validation)
    references = [
        baselines.majority(train.truth, multi_label=multi_label),
        baselines.tfidf(train, validation),
    ]
    candidates = [_candidate(baseline, task, dataset, rows) for baseline in references if baseline]
    if encoder:
        most = encoder.most_rows
        encoder.read([*train.sample(most).texts, *validation.texts, *_texts(rows)])
        baseline = baselines.search(encoder.name, {"mean": encoder}, train, validation, most=most)
        candidates.append(_candidate(baseline, task, dataset, rows, encoder.ms_per_row))
    return candidates


def _answer_candidates(
    task: QuestionTask, dataset: Dataset, rows: Sequence[Example]
) -> list[Candidate]:
    train, validation, test = map(task.with_answers, (dataset.train, dataset.validation, rows))
    sign = direction(task.options.metric)

    def value(examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
        return sign * task.score(predictions, examples).values[task.options.metric]

    majority = AnswerBaseline.majority(train)
    tfidf = None if task.has_more else majority.tfidf(train, validation, value)
    candidates = []
    for baseline in filter(None, (majority, tfidf)):
        start = time.perf_counter()
        predictions = baseline.predict(test)
        ms_per_row = 1000 * (time.perf_counter() - start) / len(rows)
        entry = Entry(name=baseline.name, kind="reference")
        on_validation = baseline.predict(validation)
        candidates.append(Candidate(entry, task, on_validation, predictions, ms_per_row))
    return candidates


def _validation_rows(task: Calibrated, examples: Sequence[Example]) -> ValidationRows:
    """Return the rows that choose a baseline's settings."""
    metric = task.options.metric
    sign = direction(metric)

    def value(probabilities: Floats) -> float:
        predictions = _predictions(examples, probabilities)
        answers = task.tune(predictions, examples).decide(predictions)
        return sign * task.score(answers, examples).values[metric]

    return ValidationRows(_texts(examples), value)


def _texts(examples: Sequence[Example]) -> list[str]:
    return [example.text for example in examples]


def _predictions(examples: Sequence[Example], probabilities: Floats) -> list[Prediction]:
    return [
        Prediction(example.id, (), tuple(row.tolist()))
        for example, row in zip(examples, probabilities, strict=True)
    ]


def _candidate(
    baseline: Baseline,
    task: Calibrated,
    dataset: Dataset,
    rows: Sequence[Example],
    ms_per_row: float = 0.0,
) -> Candidate:
    """Return a baseline's predictions. `ms_per_row` is the time of its features, where they are
    not computed here."""

    def predict_rows(examples: Sequence[Example]) -> list[Prediction]:
        return _predictions(examples, baseline.probabilities(_texts(examples)))

    validation = predict_rows(dataset.validation)
    # A threshold that is fitted to constant answers would predict a label for every row.
    decider = task if baseline.is_constant else task.tune(validation, dataset.validation)
    start = time.perf_counter()
    test = predict_rows(rows)
    ms_per_row += 1000 * (time.perf_counter() - start) / len(rows)
    entry = Entry(name=baseline.name, kind="reference", settings=baseline.settings)
    return Candidate(entry, decider, decider.decide(validation), decider.decide(test), ms_per_row)
