"""Tasks with a closed set of labels: what they share, checks, positions and weights of labels, and
labels in a text."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from medray.errors import ConfigError, DataError, suggest
from medray.evaluation import metrics
from medray.evaluation.bootstrap import LabelResults
from medray.types import Bools, Example, Floats, Ints, Prediction

ClassWeights = Literal["none", "balanced"] | dict[str, Annotated[float, Field(gt=0)]]


@dataclass(frozen=True, slots=True)
class ClosedSetTask:
    options: Any  # a task's own, with `positive_label`
    labels: tuple[str, ...]

    def truth(self, examples: Sequence[Example]) -> Bools:
        return indicators([example.labels for example in examples], self.labels).astype(np.bool_)

    def results(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> LabelResults:
        positive = self.options.positive_label
        predicted_labels = indicators([row.labels for row in predictions], self.labels)
        return LabelResults(
            self.truth(examples),
            predicted_labels.astype(np.bool_),
            None if positive is None else self.labels.index(positive),
        )


def check_options(
    labels: Sequence[str], *, metric: str, class_weights: ClassWeights, multi_label: bool
) -> None:
    """Raise where options do not fit the labels of the data."""
    choices = metrics.names(multi_label, binary=len(labels) == 2)
    if metric not in choices:
        raise ConfigError(
            f"task.metric: {metric!r} is not a metric of this task; {suggest(metric, choices)}"
        )
    for label in class_weights if isinstance(class_weights, Mapping) else ():
        if label not in labels:
            raise ConfigError(
                f"task.class_weights: {label!r} is not a label; {suggest(label, labels)}"
            )


def check_one_label(examples: Sequence[Example], otherwise: str = "") -> None:
    """Raise for a row without exactly one label; `otherwise` ends the message."""
    for example in examples:
        if len(example.labels) != 1:
            labels = ", ".join(example.labels) or "none"
            raise DataError(
                f"{example.where or example.id}: the row has the labels {labels}; give it exactly "
                f"one{otherwise}"
            )


def places(example: Example, labels: Sequence[str]) -> tuple[int, ...]:
    """Return the positions of a row's labels in `labels`."""
    for label in example.labels:
        if label not in labels:
            raise DataError(
                f"{example.where or example.id}: label {label!r:.60} is not a label of the task; "
                f"{suggest(label, labels)}"
            )
    return tuple(sorted({labels.index(label) for label in example.labels}))


def weights_of(
    class_weights: ClassWeights,
    labels: Sequence[str],
    classes: Ints,
    shares: Floats,
) -> Floats:
    """Return the weight of each label; `shares` is the share of an example that each row holds."""
    if isinstance(class_weights, Mapping):
        return np.array([class_weights.get(label, 1.0) for label in labels])
    if class_weights == "none":
        return np.ones(len(labels))
    examples = np.bincount(classes, weights=shares, minlength=len(labels))
    # A class without training rows has the weight 0, which no row uses; the split refuses it
    # anyway.
    weights: Floats = np.divide(
        examples.sum(), len(labels) * examples, out=np.zeros(len(examples)), where=examples > 0
    )
    return weights


def indicators(rows: Sequence[tuple[str, ...]], labels: Sequence[str]) -> Ints:
    """Return 0 or 1 per row and label."""
    return np.array(
        [[int(label in row) for label in labels] for row in rows], dtype=np.int64
    ).reshape(len(rows), len(labels))


def first_label(text: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the label that a generated text names first, as whole words in any case. Of several at
    the same place, return the longest."""
    plain = " ".join(text.split())
    matches = []
    for label in labels:
        match = re.search(
            rf"(?<!\w){re.escape(' '.join(label.split()))}(?!\w)", plain, re.IGNORECASE
        )
        if match:
            matches.append((match.start(), -len(label), label))
    return (min(matches)[2],) if matches else ()
