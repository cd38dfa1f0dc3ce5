"""Classification by a head on an encoder or decoder: binary, multi-class or multi-label. It loads
no model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from medray.client.answers import LabelAnswer
from medray.errors import DataError
from medray.evaluation import metrics
from medray.evaluation.calibration import mix
from medray.evaluation.thresholds import fit_thresholds
from medray.tasks.base.class_loss import ClassLoss
from medray.tasks.base.labels import (
    ClassWeights,
    ClosedSetTask,
    check_one_label,
    check_options,
    indicators,
    places,
    weights_of,
)
from medray.tasks.base.protocol import TaskOptions
from medray.tasks.base.route import LabelRequest, Route, TextResponse
from medray.text import windows as text_windows
from medray.text.windows import Keep, TokenWindows, pieces
from medray.types import Encoded, Example, Floats, Head, Pooling, Prediction

if TYPE_CHECKING:
    from medray.types import Engine

_OR_SEVERAL = ", unless task.multi_label is true"


class Options(TaskOptions):
    STUDY_WIDE = ("name", "metric", "positive_label", "multi_label")
    name: Literal["classification"]
    positive_label: str | None = Field(
        None,
        description="for exactly two labels, the positive one, which the binary metrics describe",
    )
    multi_label: bool = Field(
        False, description="a row may have any number of labels, including none"
    )
    metric: str = Field(
        "f1_macro",
        description="metric on the validation split that selects epochs and trials",
    )
    max_length: int = Field(
        512,
        ge=1,
        description="maximum number of tokens of a row, with special tokens",
    )
    long_texts: Literal["truncate", "windows"] = Field(
        "truncate", description="cut a text over max_length, or read it in windows"
    )
    keep: Keep = Field("start", description="the part of a long text to keep when it is truncated")
    window_overlap: int = Field(
        64, ge=0, description="number of tokens that neighboring windows share"
    )
    pooling: Pooling = Field(
        "token",
        description=(
            "what the head reads: the first token of an encoder or the last one of a decoder, or "
            "the mean of all tokens"
        ),
    )
    class_weights: ClassWeights = Field(
        "none",
        description=(
            "weight of a training row by its label; balanced gives every class the same sum; a "
            "label without an entry has the weight 1"
        ),
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of each target spread over all labels"
    )
    class_thresholds: bool = Field(
        False,
        description=(
            "fit a threshold per class on validation rows for macro F1, and keep it only if "
            "cross-validation shows a gain"
        ),
    )

    @property
    def overlap(self) -> int | None:
        """Return the tokens that windows share, or None where a long text is cut."""
        return self.window_overlap if self.long_texts == "windows" else None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.multi_label and self.positive_label is not None:
            raise ValueError(
                f"positive_label {self.positive_label!r} and multi_label true: a multi-label task "
                "has no positive label; leave one of them out"
            )
        if self.multi_label and self.class_weights != "none":
            raise ValueError(
                f"class_weights {self.class_weights!r} and multi_label true: a row with several "
                "labels has no single weight; leave class_weights out"
            )
        if self.multi_label and self.class_thresholds:
            raise ValueError(
                "multi_label true and class_thresholds true: a multi-label task always has a "
                "threshold per label; leave class_thresholds out"
            )
        if self.long_texts == "windows" and self.keep != "start":
            raise ValueError(
                f"keep {self.keep!r} and long_texts 'windows': windows keep the whole text; leave "
                "keep out"
            )
        if self.long_texts == "windows" and self.window_overlap >= self.max_length:
            raise ValueError(
                f"window_overlap {self.window_overlap} and max_length {self.max_length}: the "
                "overlap must be the smaller"
            )
        return self


class ClassifyRequest(LabelRequest):
    pass


class ClassifyResponse(TextResponse):
    predictions: tuple[LabelAnswer, ...]


class LabeledResponse(ClassifyResponse):
    """A response that also has the label of a single text at the top level."""

    label: str | None = Field(None, description="label of the text, if the request has only one")


def with_label(response: TextResponse) -> TextResponse:
    if len(response.predictions) != 1:
        return response
    return LabeledResponse(**dict(response), label=response.predictions[0].label)


@dataclass(frozen=True, slots=True)
class Task(ClosedSetTask):
    options: Options
    # Fitted on validation rows, for multi_label and class_thresholds.
    thresholds: tuple[float, ...] | None = None
    routes: ClassVar = (
        Route("/v1/classify", ClassifyRequest, ClassifyResponse),
        Route("/classify", ClassifyRequest, LabeledResponse, finish=with_label),
    )

    @classmethod
    def fit(
        cls, options: Options, examples: Sequence[Example], train: Sequence[Example] = ()
    ) -> Self:
        if not options.multi_label:
            check_one_label(examples, _OR_SEVERAL)
        labels = tuple(sorted({label for example in examples for label in example.labels}))
        if len(labels) < (1 if options.multi_label else 2):
            raise DataError(
                f"{len(examples)} examples have {len(labels)} labels ({', '.join(labels)}); a "
                "classifier needs at least two"
            )
        if not options.multi_label:
            metrics.check_positive(labels, options.positive_label)
        check_options(
            labels,
            metric=options.metric,
            class_weights=options.class_weights,
            multi_label=options.multi_label,
        )
        return cls(options, labels)

    @classmethod
    def restore(cls, options: Options, state: Mapping[str, Any]) -> Self:
        limits = state["thresholds"]
        return cls(options, tuple(state["labels"]), None if limits is None else tuple(limits))

    def state(self) -> dict[str, Any]:
        return {
            "labels": list(self.labels),
            "thresholds": None if self.thresholds is None else list(self.thresholds),
        }

    def head(self) -> Head:
        return Head(self.labels, self.options.multi_label, pooling=self.options.pooling)

    def encode(self, examples: Sequence[Example], tokenizer: Any) -> list[Encoded]:
        options = self.options
        texts = [example.text for example in examples]
        windows = pieces(
            texts,
            tokenizer,
            max_length=options.max_length,
            keep=options.keep,
            overlap=options.overlap,
        )
        rows = []
        for example, text in zip(examples, windows, strict=True):
            if not text.tokens[0]:
                raise DataError(
                    f"{example.where or example.id}: the text has no token; remove the row"
                )
            target = places(example, self.labels) if example.labels else ()  # a request has none
            rows += [
                Encoded(example.id, tokens, target, text.truncated, text.length)
                for tokens in text.tokens
            ]
        return rows

    def token_windows(self, text: str, tokenizer: Any) -> TokenWindows:
        options = self.options
        (windows,) = text_windows.token_windows(
            [text],
            tokenizer,
            max_length=options.max_length,
            keep=options.keep,
            overlap=options.overlap,
        )
        return windows

    def loss(self, targets: Sequence[tuple[int, ...]], row_ids: Sequence[str]) -> ClassLoss:
        """Weight each row by its class. The windows of an example share its weight, so that every
        example counts once."""
        options, counts = self.options, Counter(row_ids)
        windows = np.array([counts[row_id] for row_id in row_ids], dtype=np.float64)
        weights = 1 / windows
        if not options.multi_label:
            classes = np.array([target[0] for target in targets], dtype=np.int64)
            by_class = weights_of(options.class_weights, self.labels, classes, weights)
            weights = by_class[classes] / windows
        return ClassLoss(weights, options.multi_label, options.label_smoothing)

    def predict(self, engine: "Engine", examples: Sequence[Example]) -> list[Prediction]:
        if not examples:
            return []
        # Rows are matched by position, since a request may repeat an id.
        by_position = [
            replace(example, id=str(row), labels=()) for row, example in enumerate(examples)
        ]
        return self._predict(engine, examples, self.encode(by_position, engine.tokenizer))

    def predict_rows(
        self, engine: "Engine", examples: Sequence[Example], rows: Sequence[Encoded]
    ) -> list[Prediction]:
        positions = {example.id: str(row) for row, example in enumerate(examples)}
        by_position = [replace(row, row_id=positions[row.row_id]) for row in rows]
        return self._predict(engine, examples, by_position) if examples else []

    def _predict(
        self, engine: "Engine", examples: Sequence[Example], rows: Sequence[Encoded]
    ) -> list[Prediction]:
        """Predict from rows whose ids are positions of their examples."""
        logits = engine.logits([row.tokens for row in rows]).astype(np.float64)
        # Windows are averaged as logits. A window without evidence, with logits near zero, then
        # leaves the decision to the others; averaged probabilities would pull it to the middle.
        position = np.array([int(row.row_id) for row in rows])
        sums = np.zeros((len(examples), len(self.labels)))
        np.add.at(sums, position, logits)
        probabilities = self._probabilities(sums / np.bincount(position)[:, None])
        answers = (
            Prediction(example.id, (), tuple(row.tolist()))
            for example, row in zip(examples, probabilities, strict=True)
        )
        return self.decide(list(answers))

    def probe(self, engine: "Engine", examples: Sequence[Example]) -> Floats:
        rows = {row.row_id: row for row in reversed(self.encode(examples, engine.tokenizer))}
        return engine.logits([rows[example.id].tokens for example in examples]).astype(np.float64)

    def read_probe(self, outputs: Floats) -> list[Prediction]:
        return self.decide(
            [
                Prediction(str(row), (), tuple(one.tolist()))
                for row, one in enumerate(self._probabilities(outputs))
            ]
        )

    def tune(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Self:
        probabilities = np.array([row.probabilities for row in predictions])
        if self.options.multi_label:
            truth = indicators([example.labels for example in examples], self.labels)
            # A label without rows gives no evidence for a threshold.
            targets = mix(truth, probabilities) * truth.any(axis=0)
            return replace(self, thresholds=tuple(metrics.thresholds(targets, probabilities)))
        if self.options.class_thresholds:
            classes = np.array([places(example, self.labels)[0] for example in examples])
            return replace(self, thresholds=fit_thresholds(classes, probabilities))
        return self

    def decide(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        return [replace(row, labels=self._decision(row.probabilities)) for row in predictions]

    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> metrics.Metrics:
        assert [row.row_id for row in predictions] == [example.id for example in examples]
        probabilities = np.array([row.probabilities for row in predictions])
        if self.options.multi_label:
            truth, predicted_labels = (
                indicators([row.labels for row in rows], self.labels)
                for rows in (examples, predictions)
            )
            return metrics.multi_label(truth, probabilities, predicted_labels, self.labels)
        check_one_label(examples, _OR_SEVERAL)
        classes = [places(example, self.labels)[0] for example in examples]
        answers = [
            self.labels.index(row.labels[0]) if row.labels else metrics.NO_ANSWER
            for row in predictions
        ]
        return metrics.single_label(
            classes, probabilities, answers, self.labels, self.options.positive_label
        )

    def respond(self, predictions: Sequence[Prediction]) -> tuple[LabelAnswer, ...]:
        return tuple(self._answer(row) for row in predictions)

    def _answer(self, row: Prediction) -> LabelAnswer:
        assert row.confidence is not None  # responses are calibrated
        return LabelAnswer(
            label=None if self.options.multi_label else row.labels[0],
            labels=row.labels,
            confidence=row.confidence,
            abstained=row.abstained,
            probabilities=dict(zip(self.labels, row.probabilities, strict=True)),
        )

    def _probabilities(self, logits: Floats) -> Floats:
        # The logarithm of the denominator: over all classes, or over yes and no for multi-label.
        total = (
            np.logaddexp(0, logits)
            if self.options.multi_label
            else np.logaddexp.reduce(logits, axis=1, keepdims=True)
        )
        probabilities: Floats = np.exp(logits - total)
        return probabilities

    def _decision(self, probabilities: Sequence[float]) -> tuple[str, ...]:
        if not self.options.multi_label:
            scores = np.array(probabilities) / (
                1.0 if self.thresholds is None else np.array(self.thresholds)
            )
            return (self.labels[int(np.argmax(scores))],)
        limits = self.thresholds or (0.5,) * len(self.labels)
        return tuple(
            label
            for label, value, limit in zip(self.labels, probabilities, limits, strict=True)
            if value >= limit
        )
