"""Metrics of a classifier. Each name says which average it is, over which classes.

Every F1 of medray is computed here, from counts per class, so that absent classes and rows without
labels need no special case. Macro averages run over the classes that occur in the truth or in the
predictions. A division by zero gives 0."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from medray.errors import ConfigError, DataError, suggest
from medray.types import Floats, Ints

NO_ANSWER = -1
_ALIKE = 1e-12  # the difference of two sums of the same numbers in another order


@dataclass(frozen=True)
class Metrics:
    """The metrics of a split: `values` rank trials and are drawn as curves, the rest is for
    tables."""

    values: dict[str, float]
    num_rows: int
    # A class without positives has no auprc.
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    # Rows are the truth, columns the prediction.
    confusion: list[list[int]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def ratio(part: npt.ArrayLike, whole: npt.ArrayLike, *, empty: float = 0.0) -> Floats:
    """Return `part / whole`, and `empty` where `whole` is zero."""
    parts, wholes = np.broadcast_arrays(part, whole)
    result: Floats = np.divide(parts, wholes, out=np.full(parts.shape, empty), where=wholes > 0)
    return result


def f1(
    hits: npt.ArrayLike, true: npt.ArrayLike, predictions: npt.ArrayLike, *, empty: float = 0.0
) -> Floats:
    """Return F1 from the numbers of right predictions, of positives and of predictions, and
    `empty` where the last two are zero."""
    return ratio(np.multiply(2, hits), np.add(true, predictions), empty=empty)


def harmonic(one: Floats, two: Floats) -> Floats:
    """Return the harmonic mean of two metrics."""
    return ratio(2 * one * two, one + two)


@dataclass(frozen=True)
class Counts:
    """The number of rows of each class. The last axis holds classes; a first axis may hold
    resamples of the rows."""

    hits: npt.NDArray[Any]  # rows that have the class and are predicted to have it
    true: npt.NDArray[Any]  # rows that have the class
    predictions: npt.NDArray[Any]  # rows that are predicted to have the class

    @classmethod
    def of(
        cls, truth: npt.ArrayLike, predictions: npt.ArrayLike, weights: Floats | None = None
    ) -> Self:
        """Count from 0 or 1 per row and class. `weights` has one row per resample, which says how
        often each row counts."""
        true, answers = (
            np.asarray(truth, dtype=np.float64),
            np.asarray(predictions, dtype=np.float64),
        )
        weights = np.ones(len(true)) if weights is None else weights
        return cls(weights @ (true * answers), weights @ true, weights @ answers)

    @property
    def precision(self) -> Floats:
        return ratio(self.hits, self.predictions)

    @property
    def recall(self) -> Floats:
        return ratio(self.hits, self.true)

    @property
    def f1(self) -> Floats:
        return f1(self.hits, self.true, self.predictions)

    def average(self, name: str) -> Floats:
        """Return one of `AVERAGES` over the classes."""
        match name:
            case "f1_macro":
                return self._macro(self.f1)
            case "precision_macro":
                return self._macro(self.precision)
            case "recall_macro":
                return self._macro(self.recall)
            case "f1_weighted":
                return ratio((self.f1 * self.true).sum(axis=-1), self.true.sum(axis=-1))
        assert name == "f1_micro", name
        return f1(self.hits.sum(axis=-1), self.true.sum(axis=-1), self.predictions.sum(axis=-1))

    def _macro(self, figures: Floats) -> Floats:
        occurs = self.true + self.predictions > 0
        return ratio((figures * occurs).sum(axis=-1), occurs.sum(axis=-1))


def constant_f1(counts: Mapping[str, int], answer: Collection[str], num_rows: int) -> float:
    """Return the macro F1 of giving all rows the labels `answer`; `counts` are rows per label."""
    true = np.array(list(counts.values()), dtype=np.float64)
    predictions = np.array([num_rows * (label in answer) for label in counts], dtype=np.float64)
    return float(Counts(np.minimum(true, predictions), true, predictions).average("f1_macro"))


AVERAGES = ("f1_macro", "f1_micro", "f1_weighted", "precision_macro", "recall_macro")


def confusion(truth: npt.ArrayLike, predictions: npt.ArrayLike) -> list[list[int]]:
    """Return the confusion matrix, from 0 or 1 per row and class: rows are the truth."""
    counts: list[list[int]] = (
        (np.asarray(truth, dtype=np.float64).T @ np.asarray(predictions, dtype=np.float64))
        .astype(np.int64)
        .tolist()
    )
    return counts


def log_loss(probabilities: Floats, truth: npt.NDArray[Any], *, multi_label: bool) -> float:
    """Return the mean log loss over rows, or over rows and labels. As in scikit-learn, a mistake
    with full confidence costs 36 instead of infinity."""
    own = (
        np.where(truth, probabilities, 1 - probabilities)
        if multi_label
        else np.where(truth, probabilities, 0.0).sum(axis=1)
    )
    return float(-np.log(np.clip(own, np.finfo(np.float64).eps, 1.0)).mean())


def names(multi_label: bool, binary: bool) -> list[str]:
    """List the metrics that a study of this kind of task can select by."""
    common = [
        "f1_macro",
        "f1_micro",
        "f1_weighted",
        "precision_macro",
        "recall_macro",
        "auprc_macro",
        "log_loss",
    ]
    if multi_label:
        return ["accuracy_subset", "f1_samples", *common]
    return [
        "accuracy",
        *common,
        *(["f1_binary", "precision_binary", "recall_binary", "auprc_binary"] if binary else []),
    ]


LOSSES = ("log_loss", "perplexity")


def higher_is_better(name: str) -> bool:
    return name not in (*LOSSES, "brier", "ece", "score_mae")


def direction(name: str) -> int:
    """Return the factor that makes higher values of a metric the better ones."""
    return 1 if higher_is_better(name) else -1


def check_positive(labels: Sequence[str], positive: str | None) -> None:
    """Raise unless a positive label is set for two labels and for no other number. The data cannot
    tell which of two labels is the positive one."""
    if positive is not None and positive not in labels:
        raise ConfigError(
            f"positive label {positive!r} is not a label; {suggest(positive, labels)}"
        )
    if len(labels) == 2 and positive is None:
        raise ConfigError(
            f"positive_label is missing, and there are two labels; set it to {labels[0]!r} or "
            f"{labels[1]!r}"
        )
    if len(labels) != 2 and positive is not None:
        raise ConfigError(
            f"positive_label {positive!r} needs exactly two labels, and there are {len(labels)} "
            f"({', '.join(labels)}); leave it out"
        )


def single_label(
    truth: Sequence[int],
    probabilities: npt.ArrayLike,
    predictions: Sequence[int],
    labels: Sequence[str],
    positive: str | None,
) -> Metrics:
    """Score rows that have one class each. `truth` and `predictions` are positions in `labels`; a
    prediction may be `NO_ANSWER`, which is never right."""
    check_positive(labels, positive)
    rows, answers = np.asarray(truth, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    scores = _scores(probabilities, (len(rows), len(labels)))
    # The last row, which stands for no answer, is all zeros.
    one_hot = np.eye(len(labels) + 1, len(labels), dtype=np.int64)
    values, per_class = _figures(one_hot[rows], scores, one_hot[answers], labels)
    values["accuracy"] = float((rows == answers).mean())
    values["log_loss"] = log_loss(scores, one_hot[rows], multi_label=False)
    if positive is not None:
        # A class without positives has no auprc per class; the metric that ranks trials is 0 then.
        values |= {
            f"{name}_binary": per_class[positive].get(name, 0.0)
            for name in ("f1", "precision", "recall", "auprc")
        }
    order = names(multi_label=False, binary=positive is not None)
    return Metrics(
        {name: values[name] for name in order},
        len(rows),
        per_class,
        confusion(one_hot[rows], one_hot[answers]),
        list(labels),
    )


def multi_label(
    truth: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    predictions: npt.ArrayLike,
    labels: Sequence[str],
) -> Metrics:
    """Score rows that may have any number of classes, from 0 or 1 per row and label."""
    rows, answers = np.asarray(truth, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    scores = _scores(probabilities, (len(rows), len(labels)))
    values, per_class = _figures(rows, scores, answers, labels)
    values["accuracy_subset"] = float((rows == answers).all(axis=1).mean())
    # A row without labels that is predicted to have none is right: its F1 is 1, not 0.
    values["f1_samples"] = float(
        f1((rows * answers).sum(axis=1), rows.sum(axis=1), answers.sum(axis=1), empty=1.0).mean()
    )
    values["log_loss"] = log_loss(scores, rows, multi_label=True)
    order = names(multi_label=True, binary=False)
    return Metrics({name: values[name] for name in order}, len(rows), per_class, [], list(labels))


def thresholds(truth: npt.ArrayLike, probabilities: npt.ArrayLike) -> list[float]:
    """Return the threshold per label with the highest F1 on these rows; a label is predicted if
    its probability is at least the threshold.

    Of equally good thresholds, the nearest to 0.5 is returned; 0.5 for a label without positives.
    `truth` is 0 or 1, or the probability of 1."""
    rows = np.asarray(truth, dtype=np.float64)
    scores = _scores(probabilities, rows.shape)
    return [_threshold(rows[:, label], scores[:, label]) for label in range(rows.shape[1])]


def _threshold(truth: Floats, scores: Floats) -> float:
    if not truth.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    descending = scores[order]
    # The last row of each run of equal scores.
    ends = np.append(np.flatnonzero(np.diff(descending)), len(descending) - 1)
    hits = np.cumsum(truth[order])[ends]
    # A candidate lies half way to the next lower score. On a score itself, the last bit of another
    # device would flip that row.
    upper, lower = descending[ends], np.append(descending[ends[1:]], 0.0)
    middle = (upper + lower) / 2
    candidates = np.append(np.where(middle > lower, middle, upper), 0.5)
    default = scores >= 0.5
    hits = np.append(hits, truth[default].sum())
    figures = f1(hits, truth.sum(), np.append(ends + 1, default.sum()))
    best = candidates[figures >= figures.max() - _ALIKE]
    return float(best[np.argmin(np.abs(best - 0.5))])


def _figures(
    truth: Ints, scores: Floats, predictions: Ints, labels: Sequence[str]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return the averages and the metrics per class, from 0 or 1 per row and label."""
    counts = Counts.of(truth, predictions)
    auprc = {
        column: _auprc(truth[:, column], scores[:, column])
        for column in np.flatnonzero(counts.true)
    }
    values = {name: float(counts.average(name)) for name in AVERAGES}
    values["auprc_macro"] = float(np.mean(list(auprc.values()))) if auprc else 0.0
    figures = {
        "precision": counts.precision,
        "recall": counts.recall,
        "f1": counts.f1,
        "support": counts.true,
    }
    per_class = {
        label: {name: float(of[column]) for name, of in figures.items()}
        for column, label in enumerate(labels)
    }
    for column, value in auprc.items():
        per_class[labels[column]]["auprc"] = value
    return values, per_class


def _auprc(truth: Ints, scores: Floats) -> float:
    # The import takes 1.5 seconds, which reading a configuration must not wait for.
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, scores))


def _scores(probabilities: npt.ArrayLike, shape: tuple[int, ...]) -> Floats:
    scores = np.asarray(probabilities, dtype=np.float64)
    if shape[0] == 0:
        raise DataError("there are no rows to score; check the split of the data")
    if scores.shape != shape:
        raise DataError(
            f"probabilities have the shape {scores.shape}; expected {shape[0]} rows of {shape[1]} "
            "labels"
        )
    if not np.isfinite(scores).all():
        raise DataError(
            f"{int((~np.isfinite(scores)).any(axis=1).sum())} of {shape[0]} rows have a "
            "probability that is not a finite number; train with a lower learning rate"
        )
    return scores
