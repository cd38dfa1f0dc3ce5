"""What of a study's findings is told of one of its models wherever it goes: in its release, on its card, in the report."""

from medray.records import SliceRecord, TestRecord
from medray.selection.analysis import Analysis, WorstSlice
from medray.selection.leaderboard import Entry, Leaderboard


def test_record(board: Leaderboard, entry: Entry, analysis: Analysis | None) -> TestRecord:
    """Its figures on test rows, and how it behaves there where that was looked at."""
    record = TestRecord(
        metrics=dict(entry.test),
        num_rows=board.num_rows["test"],
        num_openings=board.num_openings,
        num_seeds=entry.seeds.num_seeds if entry.seeds else 1,
        num_folds=board.num_folds,
    )
    found = analysis.of(entry.name) if analysis else None
    if found is None:
        return record
    test = found.test
    rule, worst = test.abstention, test.worst
    answered = (rule.coverage, rule.precision.value) if rule and rule.precision else None
    behaviour = {
        "ece": (test.before.ece, test.after.ece),
        "answered": answered,
        "worst_slice": _slice(worst, test.metric) if worst else None,
    }
    return record.model_copy(update=behaviour)


def _slice(worst: WorstSlice, metric: str) -> SliceRecord:
    held = worst.slice
    assert held.f1 is not None  # or it would not have been compared
    return SliceRecord(
        column=held.column,
        value=held.value,
        num_rows=held.num_rows,
        metric=metric,
        f1=held.f1.value,
        low=held.f1.low,
        high=held.f1.high,
        num_compared=worst.num_compared,
        is_below=worst.is_below,
    )
