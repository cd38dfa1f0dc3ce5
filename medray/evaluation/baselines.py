"""What a fine-tuned model has to beat: the most frequent answer, and words counted by TF-IDF under
a logistic regression."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medray.types import Bools, Floats, Ints

log = logging.getLogger(__name__)
MOST_ROWS = 50_000  # that the regression is fitted on


@dataclass(frozen=True)
class Reference:
    """Fitted on training rows; gives probabilities in the order of the labels."""

    name: str
    pipeline: Any  # scikit-learn's; None answers the share of each label
    shares: Floats

    def probabilities(self, texts: Sequence[str]) -> Floats:
        if self.pipeline is None:
            return np.tile(self.shares, (len(texts), 1))
        probabilities: Floats = self.pipeline.predict_proba(texts)
        return probabilities


def majority(truth: Bools, *, multi_label: bool) -> Reference:
    """`truth` has a row for each training text and a column for each label. The share of each
    label; multi-label: the most frequent set."""
    most, _ = Counter(map(tuple, truth.tolist())).most_common(1)[0]
    return Reference(
        "majority", None, np.array(most, dtype=np.float64) if multi_label else truth.mean(axis=0)
    )


def tfidf(
    texts: Sequence[str], truth: Bools, *, multi_label: bool, seed: int = 0
) -> Reference | None:
    """Words and pairs of words; the settings are usual ones and are not searched. None where the
    texts hold no word to count."""
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
    chosen = truth[rows]
    present = np.flatnonzero(chosen.any(axis=0)) if not multi_label else np.arange(truth.shape[1])
    targets = chosen.astype(int) if multi_label else chosen[:, present].argmax(axis=1)
    try:
        pipeline.fit([texts[int(row)] for row in rows], targets)
    except ValueError as err:
        if "vocabulary" not in str(err) and "no terms remain" not in str(err):
            raise
        log.warning("%s is left out: %s", name, err)
        return None
    return Reference(name, _Columns(pipeline, present, truth.shape[1]), chosen.mean(axis=0))


@dataclass(frozen=True)
class _Columns:
    """Probabilities of labels that the fitted rows had, in the places of all labels."""

    pipeline: Any
    present: Ints
    num_labels: int

    def predict_proba(self, texts: Sequence[str]) -> Floats:
        probabilities = np.zeros((len(texts), self.num_labels))
        present = self.pipeline.predict_proba(texts)
        probabilities[:, self.present] = present[
            :, -len(self.present) :
        ]  # of one label scikit-learn gives both no and yes
        return probabilities
