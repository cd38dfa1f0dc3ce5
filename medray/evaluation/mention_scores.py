"""Scores of mentions: exact and overlapping matches of each row, and their micro F1. Every task
uses this scorer.

A mention matches exactly if start, end and kind are those of the truth. It matches by overlap if it
shares a character with an unmatched mention of the same kind. Pure: mentions in, metrics out."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from medray.evaluation.bootstrap import Sums, Tallies
from medray.evaluation.metrics import Metrics, f1, ratio
from medray.types import Floats, Mention

F1, F1_OVERLAP = "mention_f1", "mention_f1_overlap"
FIGURES = (
    F1,
    "mention_precision",
    "mention_recall",
    F1_OVERLAP,
    "mention_precision_overlap",
    "mention_recall_overlap",
)
_TRUE, _PREDICTIONS, _EXACT, _OVERLAP = "true", "predicted", "exact", "overlap"
Formula = Callable[[Sums], Floats]
MentionPair = tuple[Sequence[Mention], Sequence[Mention]]  # truth and prediction of a row


def exact(truth: Sequence[Mention], predictions: Sequence[Mention]) -> int:
    return len(_spans(truth) & _spans(predictions))


def overlapping(truth: Sequence[Mention], predictions: Sequence[Mention]) -> int:
    """Return the largest number of overlapping pairs. Both sides are walked in the order of their
    ends, which is optimal where the mentions of one side do not overlap each other."""
    num = 0
    free = sorted(_spans(truth), key=_by_end)
    for start, end, kind in sorted(_spans(predictions), key=_by_end):
        hit = next(
            (other for other in free if other[2] == kind and other[0] < end and start < other[1]),
            None,
        )
        if hit:
            free.remove(hit)
            num += 1
    return num


def tally(
    ids: Sequence[str],
    rows: Sequence[MentionPair],
    rates: Mapping[str, tuple[str, str]],
    counts: Sequence[Mapping[str, float]],
) -> Tallies:
    """Count the matches of each row. `rates` adds ratios of two columns of `counts`, by name: part
    and whole."""
    names = dict.fromkeys(name for pair in rates.values() for name in pair)
    columns: dict[str, Floats] = {
        name: np.array([row[name] for row in counts], dtype=np.float64) for name in names
    }
    for name, column in zip(
        (_TRUE, _PREDICTIONS, _EXACT, _OVERLAP), zip(*map(_counts, rows), strict=True), strict=True
    ):
        columns[name] = np.array(column, dtype=np.float64)
    figures = {name: _formula(name) for name in FIGURES} | {
        name: _ratio(*pair) for name, pair in rates.items()
    }
    return Tallies(tuple(ids), columns, figures)


def score(tallies: Tallies, rows: Sequence[MentionPair], kinds: Sequence[str]) -> Metrics:
    """Return the metrics of all rows, and those of each kind."""
    per_kind = {}
    for kind in kinds:
        alone = [
            (_of_kind(truth, kind), _of_kind(predictions, kind)) for truth, predictions in rows
        ]
        true, num_predicted, hits, near = (
            sum(column) for column in zip(*map(_counts, alone), strict=True)
        )
        per_kind[kind] = {
            "precision": float(ratio(hits, num_predicted)),
            "recall": float(ratio(hits, true)),
            "f1": float(f1(hits, true, num_predicted)),
            "f1_overlap": float(f1(near, true, num_predicted)),
            "support": float(true),
        }
    return Metrics(tallies.whole(), len(rows), per_kind)


def _counts(row: MentionPair) -> tuple[int, int, int, int]:
    truth, predictions = row
    return (
        len(_spans(truth)),
        len(_spans(predictions)),
        exact(truth, predictions),
        overlapping(truth, predictions),
    )


def _formula(name: str) -> Formula:
    hits = _OVERLAP if name.endswith("_overlap") else _EXACT
    if name in (F1, F1_OVERLAP):
        return lambda sums: f1(sums[hits], sums[_TRUE], sums[_PREDICTIONS])
    return _ratio(hits, _PREDICTIONS if "precision" in name else _TRUE)


def _ratio(part: str, whole: str) -> Formula:
    return lambda sums: ratio(sums[part], sums[whole])


def _of_kind(mentions: Iterable[Mention], kind: str) -> list[Mention]:
    return [mention for mention in mentions if mention.kind == kind]


def _spans(mentions: Iterable[Mention]) -> set[tuple[int, int, str]]:
    return {(mention.start, mention.end, mention.kind) for mention in mentions}


def _by_end(span: tuple[int, int, str]) -> tuple[int, int]:
    return span[1], span[0]
