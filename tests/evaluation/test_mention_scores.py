"""The scorer of mentions: exact and overlapping matches, figures made of their sums, intervals over
rows."""

import numpy as np
import pytest

from medray.evaluation.bootstrap import compare, interval
from medray.evaluation.mention_scores import exact, overlapping, score, tally
from medray.types import Mention


def mentions(*spans: tuple[int, int] | tuple[int, int, str]) -> list[Mention]:
    return [
        Mention(span[0], span[1], "", span[2] if len(span) == 3 else "Disease") for span in spans
    ]


@pytest.mark.parametrize(
    ("truth", "answer", "hits", "near"),
    [
        ([], [], 0, 0),
        ([(0, 6)], [(0, 6)], 1, 1),
        ([(0, 6)], [(0, 6), (0, 6)], 1, 1),  # a repeated mention counts once
        ([(0, 6)], [(0, 5)], 0, 1),
        ([(0, 6)], [(6, 9)], 0, 0),  # touching is not overlapping
        ([(0, 6)], [(0, 6, "Chemical")], 0, 0),
        ([(0, 6), (0, 6, "Chemical")], [(0, 6), (0, 6, "Chemical")], 2, 2),
        ([(0, 3), (4, 7)], [(0, 7)], 0, 1),  # one that covers two finds one
        ([(0, 7)], [(0, 3), (4, 7)], 0, 1),
        ([(0, 3), (4, 7)], [(2, 5), (6, 9)], 0, 2),
        ([(0, 9), (10, 12)], [(0, 2), (8, 11)], 0, 2),
        ([(5, 9)], [(0, 4)], 0, 0),
    ],
)
def test_each_mention_is_matched_once(truth: list, answer: list, hits: int, near: int) -> None:
    assert (
        exact(mentions(*truth), mentions(*answer)),
        overlapping(mentions(*truth), mentions(*answer)),
    ) == (hits, near)


ROWS = [
    (mentions((0, 6), (10, 20)), mentions((0, 6), (11, 20), (30, 40))),
    (mentions(), mentions()),
    (mentions((5, 9, "Chemical")), mentions()),
]


def figures(rows: list) -> dict[str, float]:
    result = tally([str(number) for number in range(len(rows))], rows, {}, [{}] * len(rows))
    return score(result, rows, ["Chemical", "Disease"]).values


def test_figures_are_micro_over_the_mentions_of_all_rows() -> None:
    result = figures(ROWS)
    assert result["mention_precision"] == pytest.approx(1 / 3)
    assert result["mention_recall"] == pytest.approx(1 / 3)
    assert result["mention_f1"] == pytest.approx(1 / 3)
    assert result["mention_precision_overlap"] == pytest.approx(2 / 3)
    assert result["mention_recall_overlap"] == pytest.approx(2 / 3)
    assert result["mention_f1_overlap"] == pytest.approx(2 / 3)


def test_each_kind_has_its_own_figures_and_nothing_divides_by_zero() -> None:
    result = tally(["a", "b", "c"], ROWS, {}, [{}] * 3)
    per_kind = score(result, ROWS, ["Chemical", "Disease"]).per_class
    assert per_kind["Chemical"] == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "f1_overlap": 0.0,
        "support": 1.0,
    }
    assert per_kind["Disease"]["f1"] == pytest.approx(2 / 5)
    assert per_kind["Disease"]["f1_overlap"] == pytest.approx(4 / 5)
    assert set(figures([([], [])]).values()) == {0.0}


def test_rates_are_sums_over_sums() -> None:
    counts = [
        {"rows": 1.0, "invalid": 1.0},
        {"rows": 1.0, "invalid": 0.0},
        {"rows": 1.0, "invalid": 0.0},
    ]
    result = tally(["a", "b", "c"], ROWS, {"invalid_rate": ("invalid", "rows")}, counts)
    assert result.whole()["invalid_rate"] == pytest.approx(1 / 3)
    assert "invalid_rate" in result.metrics


def test_the_interval_draws_rows_and_a_comparison_pairs_them() -> None:
    rng = np.random.default_rng(0)
    truth = [mentions((0, 6), (10, 20)) for _ in range(60)]
    good = [
        mentions((0, 6)) if rng.random() < 0.3 else mentions((0, 6), (10, 20)) for _ in range(60)
    ]
    bad = [mentions((0, 6)) if rng.random() < 0.3 else mentions() for _ in range(60)]
    ids = [str(number) for number in range(60)]
    one, two = (
        tally(ids, list(zip(truth, answer, strict=True)), {}, [{}] * 60) for answer in (good, bad)
    )
    result = interval(one, "mention_f1")
    assert result.low < one.whole()["mention_f1"] < result.high
    difference = compare(one, two, "mention_f1")
    assert difference.difference == pytest.approx(
        one.whole()["mention_f1"] - two.whole()["mention_f1"]
    )
    assert difference.low > 0
