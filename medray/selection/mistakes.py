"""Rows to look at again: what was answered wrongly, the surest first, and labels that are probably wrong themselves."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medray.selection.analysis import Mistake, Suspect
from medray.selection.statistics import LabelAnswers

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def mistakes(ids: Sequence[str], answers: LabelAnswers, confidence: Floats, labels: Sequence[str]) -> tuple[Mistake, ...]:
    wrong = np.flatnonzero((answers.truth != answers.predicted).any(axis=1))
    rows = wrong[np.argsort(-confidence[wrong], kind="stable")]
    return tuple(
        Mistake(ids[row], _names(answers.truth[row], labels), _names(answers.predicted[row], labels), float(confidence[row]))
        for row in rows
    )


def suspects(ids: Sequence[str], truth: Bools, probabilities: Floats, labels: Sequence[str], *, multi_label: bool) -> tuple[Suspect, ...]:
    """Confident learning: another label is as probable as it is for rows that have it, and the given one less than for its own rows.

    The rows must not have trained the model: it would have learned their wrong labels.
    """
    given = _mean_where(truth, probabilities, otherwise=1.0)  # how probable a label is where it is given
    found = _by_label(truth, probabilities, given) if multi_label else _by_row(truth, probabilities, given)
    doubtful = np.flatnonzero((found[0] != truth).any(axis=1))
    rows = doubtful[np.argsort(-found[1][doubtful], kind="stable")]
    return tuple(Suspect(ids[row], _names(truth[row], labels), _names(found[0][row], labels), float(found[1][row])) for row in rows)


def _by_row(truth: Bools, probabilities: Floats, given: Floats) -> tuple[Bools, Floats]:
    rows = np.arange(len(truth))
    held, best = truth.argmax(axis=1), probabilities.argmax(axis=1)
    doubtful = (best != held) & (probabilities[rows, best] >= given[best]) & (probabilities[rows, held] < given[held])
    suggested = truth.copy()
    suggested[doubtful] = np.eye(truth.shape[1], dtype=np.bool_)[best[doubtful]]
    return suggested, probabilities[rows, best] - probabilities[rows, held]


def _by_label(truth: Bools, probabilities: Floats, given: Floats) -> tuple[Bools, Floats]:
    absent = _mean_where(~truth, probabilities, otherwise=0.0)  # how probable a label is where it is not given
    flipped = np.where(truth, (probabilities <= absent) & (probabilities < 0.5), (probabilities >= given) & (probabilities > 0.5))
    doubts = np.where(flipped, np.abs(2 * probabilities - 1), 0.0)
    return truth ^ flipped, doubts.max(axis=1)


def _mean_where(chosen: Bools, probabilities: Floats, *, otherwise: float) -> Floats:
    counts = chosen.sum(axis=0)
    sums = np.where(chosen, probabilities, 0.0).sum(axis=0)
    means: Floats = np.divide(sums, counts, out=np.full(len(counts), otherwise), where=counts > 0)
    return means


def _names(row: Bools, labels: Sequence[str]) -> tuple[str, ...]:
    return tuple(label for label, there in zip(labels, row, strict=True) if there)
