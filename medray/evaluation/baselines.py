"""Baselines that a fine-tuned model has to beat: the majority answer, and logistic regressions on
simple features, whose settings are searched on validation rows."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from operator import itemgetter
from typing import Any, Protocol

import numpy as np

from medray.types import Bools, Floats, Ints

log = logging.getLogger(__name__)
MOST_ROWS = 50_000  # a regression is fitted on at most this many rows
SEARCH_ROWS = 5_000  # and its settings are searched on at most this many of them
_STRENGTHS = (0.3, 1.0, 3.0, 10.0)  # C: the inverse of the regularization
_CLASS_WEIGHTS = (None, "balanced")


class Features(Protocol):
    """Turns texts into the rows of a matrix, such as a vectorizer of scikit-learn."""

    def fit_transform(self, texts: Sequence[str]) -> Any: ...

    def transform(self, texts: Sequence[str]) -> Any: ...


@dataclass(frozen=True)
class TrainingRows:
    """The texts that a baseline is fitted on, with one row of `truth` per text and one column per
    label."""

    texts: Sequence[str]
    truth: Bools
    multi_label: bool

    def sample(self, most: int, seed: int = 0) -> "TrainingRows":
        """Return at most this many of the rows, drawn at random."""
        if len(self.texts) <= most:
            return self
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.choice(len(self.texts), most, replace=False))
        texts = [self.texts[int(row)] for row in rows]
        return TrainingRows(texts, self.truth[rows], self.multi_label)


@dataclass(frozen=True)
class ValidationRows:
    """The texts that choose a baseline's settings. `value` returns the metric of probabilities for
    these texts; the higher, the better."""

    texts: Sequence[str]
    value: Callable[[Floats], float]


@dataclass(frozen=True)
class Regression:
    """A fitted regression. It places the probabilities of the labels in its rows among those of
    all labels."""

    regression: Any  # of scikit-learn
    present: Ints
    num_labels: int

    @classmethod
    def fit(cls, matrix: Any, rows: TrainingRows, settings: Mapping[str, Any]) -> "Regression":
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier

        regression = LogisticRegression(**settings, max_iter=2000)
        num_labels = rows.truth.shape[1]
        if rows.multi_label:
            several = OneVsRestClassifier(regression).fit(matrix, rows.truth.astype(int))
            return cls(several, np.arange(num_labels), num_labels)
        present = np.flatnonzero(rows.truth.any(axis=0))
        targets = rows.truth[:, present].argmax(axis=1)
        return cls(regression.fit(matrix, targets), present, num_labels)

    def probabilities(self, matrix: Any) -> Floats:
        probabilities = np.zeros((matrix.shape[0], self.num_labels))
        present = self.regression.predict_proba(matrix)
        # For a single label, scikit-learn returns two columns: no and yes.
        probabilities[:, self.present] = present[:, -len(self.present) :]
        return probabilities


@dataclass(frozen=True)
class Baseline:
    """A simple model, fitted on training rows. Its probabilities are in the order of the labels."""

    name: str
    shares: Floats  # of each label, the answer of a baseline that reads no text
    features: Features | None = None
    classifier: Regression | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_constant(self) -> bool:
        return self.classifier is None

    def probabilities(self, texts: Sequence[str]) -> Floats:
        if self.classifier is None or self.features is None:
            return np.tile(self.shares, (len(texts), 1))
        return self.classifier.probabilities(self.features.transform(texts))


def majority(truth: Bools, *, multi_label: bool) -> Baseline:
    """Predict the share of each label, or in a multi-label task the most frequent set of labels.
    `truth` has one row per training text and one column per label."""
    most, _ = Counter(map(tuple, truth.tolist())).most_common(1)[0]
    return Baseline(
        "majority", np.array(most, dtype=np.float64) if multi_label else truth.mean(axis=0)
    )


def tfidf(rows: TrainingRows, validation: ValidationRows, *, seed: int = 0) -> Baseline | None:
    """Search a logistic regression on TF-IDF of words, or of words and pairs of words. Return None
    if the texts contain no word."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    name = "TF-IDF + logistic regression"
    options = {"sublinear_tf": True, "min_df": 2 if len(rows.texts) > 500 else 1}
    features = {
        "words": TfidfVectorizer(ngram_range=(1, 1), **options),
        "words and pairs": TfidfVectorizer(ngram_range=(1, 2), **options),
    }
    try:
        return search(name, features, rows, validation, seed=seed)
    except ValueError as err:
        if "vocabulary" not in str(err) and "no terms remain" not in str(err):
            raise
        log.warning("%s is left out: %s", name, err)
        return None


def search(
    name: str,
    features: Mapping[str, Features],
    rows: TrainingRows,
    validation: ValidationRows,
    *,
    most: int = MOST_ROWS,
    seed: int = 0,
) -> Baseline:
    """Return the best regression on validation rows, over kinds of features, strengths of
    regularization and class weights. It is fitted on at most `most` rows. Of equal ones, the first
    and simplest wins."""
    all_rows, num_all = rows.sample(most, seed), len(rows.texts)
    if len(all_rows.texts) < num_all:
        name += f" (fitted on {most:,} of {num_all:,} rows)"
    sample = all_rows.sample(SEARCH_ROWS, seed)
    best = max(_candidates(name, features, sample, validation), key=itemgetter(0))[1]
    if sample is all_rows:
        return best
    settings = dict(best.settings)
    kind = features[settings.pop("features")]
    classifier = Regression.fit(kind.fit_transform(all_rows.texts), all_rows, settings)
    return Baseline(name, best.shares, kind, classifier, best.settings)


def _candidates(
    name: str, features: Mapping[str, Features], rows: TrainingRows, validation: ValidationRows
) -> Iterator[tuple[float, Baseline]]:
    """Yield each baseline of the search with its metric on validation rows."""
    shares = rows.truth.mean(axis=0)
    for kind, of_kind in features.items():
        matrix, validation_matrix = (
            of_kind.fit_transform(rows.texts),
            of_kind.transform(validation.texts),
        )
        for class_weight, strength in product(_CLASS_WEIGHTS, _STRENGTHS):
            settings = {"C": strength, "class_weight": class_weight}
            classifier = Regression.fit(matrix, rows, settings)
            value = validation.value(classifier.probabilities(validation_matrix))
            settings = {"features": kind, **settings}
            yield value, Baseline(name, shares, of_kind, classifier, settings)
