"""Baselines that a fine-tuned model has to beat: the majority answer, and TF-IDF with logistic
regression."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medray.types import Bools, Floats, Ints

log = logging.getLogger(__name__)
MOST_ROWS = 50_000  # the regression is fitted on at most this many rows


@dataclass(frozen=True)
class Baseline:
    """A simple classifier, fitted on training rows. Its probabilities are in the order of the
    labels."""

    name: str
    pipeline: Any  # of scikit-learn; None: predict the share of each label
    shares: Floats

    def probabilities(self, texts: Sequence[str]) -> Floats:
        if self.pipeline is None:
            return np.tile(self.shares, (len(texts), 1))
        probabilities: Floats = self.pipeline.predict_proba(texts)
        return probabilities


def majority(truth: Bools, *, multi_label: bool) -> Baseline:
    """Predict the share of each label, or in a multi-label task the most frequent set of labels.
    `truth` has one row per training text and one column per label."""
    most, _ = Counter(map(tuple, truth.tolist())).most_common(1)[0]
    return Baseline(
        "majority", None, np.array(most, dtype=np.float64) if multi_label else truth.mean(axis=0)
    )


def tfidf(
    texts: Sequence[str], truth: Bools, *, multi_label: bool, seed: int = 0
) -> Baseline | None:
    """Fit a logistic regression on TF-IDF of words and pairs of words, with usual settings that
    are not searched. Return None if the texts contain no word."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline

    rows = np.arange(len(texts))
    name = "TF-IDF + logistic regression"
    if len(rows) > MOST_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MOST_ROWS, replace=False))
        name += f" (fitted on {MOST_ROWS:,} of {len(texts):,} rows)"
    regression = LogisticRegression(C=10, max_iter=2000)
    classifier = OneVsRestClassifier(regression) if multi_label else regression
    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2 if len(rows) > 500 else 1),
        classifier,
    )
    sample = truth[rows]
    present = np.flatnonzero(sample.any(axis=0)) if not multi_label else np.arange(truth.shape[1])
    targets = sample.astype(int) if multi_label else sample[:, present].argmax(axis=1)
    try:
        pipeline.fit([texts[int(row)] for row in rows], targets)
    except ValueError as err:
        if "vocabulary" not in str(err) and "no terms remain" not in str(err):
            raise
        log.warning("%s is left out: %s", name, err)
        return None
    return Baseline(name, _AllLabels(pipeline, present, truth.shape[1]), sample.mean(axis=0))


@dataclass(frozen=True)
class _AllLabels:
    """Places the probabilities of the labels in the fitted rows among those of all labels."""

    pipeline: Any
    present: Ints
    num_labels: int

    def predict_proba(self, texts: Sequence[str]) -> Floats:
        probabilities = np.zeros((len(texts), self.num_labels))
        present = self.pipeline.predict_proba(texts)
        # For a single label, scikit-learn returns two columns: no and yes.
        probabilities[:, self.present] = present[:, -len(self.present) :]
        return probabilities
