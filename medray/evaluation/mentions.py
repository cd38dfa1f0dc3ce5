"""How well mentions are predicted: counts of each row, exact and overlapping, and their micro F1.
One scorer for every task.

A mention counts once: exactly where start, end and kind are those of the truth; overlapping where
it shares a character with one of the same kind that no other mention was matched with. Pure:
mentions in, figures out."""

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
_TRUE, _PREDICTED, _EXACT, _OVERLAP = "true", "predicted", "exact", "overlap"
Figure = Callable[[Sums], Floats]
Row = tuple[Sequence[Mention], Sequence[Mention]]  # the truth, and the prediction


def exact(truth: Sequence[Mention], predictions: Sequence[Mention]) -> int:
    return len(_spans(truth) & _spans(predictions))


def overlapping(truth: Sequence[Mention], predictions: Sequence[Mention]) -> int:
    """As many pairs as there can be where mentions of one side lie apart: both are gone through in
    the order they end in."""
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
    rows: Sequence[Row],
    rates: Mapping[str, tuple[str, str]],
    counts: Sequence[Mapping[str, float]],
) -> Tallies:
    """`rates` are further figures, each of two counts that `counts` has for each row: how many of
    how many."""
    names = dict.fromkeys(name for pair in rates.values() for name in pair)
    columns: dict[str, Floats] = {
        name: np.array([row[name] for row in counts], dtype=np.float64) for name in names
    }
    for name, column in zip(
        (_TRUE, _PREDICTED, _EXACT, _OVERLAP), zip(*map(_counts, rows), strict=True), strict=True
    ):
        columns[name] = np.array(column, dtype=np.float64)
    figures = {name: _figure(name) for name in FIGURES} | {
        name: _share(*pair) for name, pair in rates.items()
    }
    return Tallies(tuple(ids), columns, figures)


def score(tallies: Tallies, rows: Sequence[Row], kinds: Sequence[str]) -> Metrics:
    """All figures of the rows, and those of each kind alone."""
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


def _counts(row: Row) -> tuple[int, int, int, int]:
    truth, predictions = row
    return (
        len(_spans(truth)),
        len(_spans(predictions)),
        exact(truth, predictions),
        overlapping(truth, predictions),
    )


def _figure(name: str) -> Figure:
    hits = _OVERLAP if name.endswith("_overlap") else _EXACT
    if name in (F1, F1_OVERLAP):
        return lambda sums: f1(sums[hits], sums[_TRUE], sums[_PREDICTED])
    return _share(hits, _PREDICTED if "precision" in name else _TRUE)


def _share(part: str, whole: str) -> Figure:
    return lambda sums: ratio(sums[part], sums[whole])


def _of_kind(mentions: Iterable[Mention], kind: str) -> list[Mention]:
    return [mention for mention in mentions if mention.kind == kind]


def _spans(mentions: Iterable[Mention]) -> set[tuple[int, int, str]]:
    return {(mention.start, mention.end, mention.kind) for mention in mentions}


def _by_end(span: tuple[int, int, str]) -> tuple[int, int]:
    return span[1], span[0]
