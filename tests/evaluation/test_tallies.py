"""Figures of answers that are no labels: counts a row, intervals and comparisons by the same
resamples as any others."""

import numpy as np
import pytest

from medray.errors import ConfigError
from medray.evaluation import pooling
from medray.evaluation.bootstrap import (
    LabelResults,
    Sums,
    Tallies,
    compare,
    interval,
    num_rows,
    value,
)
from medray.evaluation.metrics import f1, harmonic, ratio


def micro_f1(sums: Sums) -> np.ndarray:
    return f1(sums["both"], sums["true"], sums["said"])


def mean_overlap(sums: Sums) -> np.ndarray:
    return ratio(sums["overlap"], sums["rows"])


def both_of_them(sums: Sums) -> np.ndarray:
    return harmonic(micro_f1(sums), mean_overlap(sums))


def draw(seed: int, num: int = 80) -> Tallies:
    rng = np.random.default_rng(seed)
    true, answer = rng.integers(0, 5, num), rng.integers(0, 5, num)
    counts = {
        "true": true,
        "said": answer,
        "both": np.minimum(true, answer),
        "overlap": rng.random(num),
        "rows": np.ones(num),
    }
    figures = {"f1_micro": micro_f1, "overlap": mean_overlap, "of_both": both_of_them}
    return Tallies(
        tuple(map(str, range(num))),
        {name: column.astype(float) for name, column in counts.items()},
        figures,
    )


def by_hand(answers: Tallies, rows: np.ndarray) -> dict[str, float]:
    """The figures of a list of rows, one scoring each."""
    counts = {name: column[rows] for name, column in answers.counts.items()}
    micro = 2 * counts["both"].sum() / (counts["true"].sum() + counts["said"].sum())
    overlap = counts["overlap"].mean()
    return {
        "f1_micro": micro,
        "overlap": overlap,
        "of_both": 2 * micro * overlap / (micro + overlap),
    }


@pytest.mark.parametrize("metric", ["f1_micro", "overlap", "of_both"])
def test_the_interval_is_that_of_a_bootstrap_made_by_hand(metric: str) -> None:
    answers = draw(0)
    assert value(answers, metric) == pytest.approx(by_hand(answers, np.arange(80))[metric])
    rng = np.random.default_rng(0)
    values = [
        by_hand(answers, np.repeat(np.arange(80), rng.multinomial(80, np.full(80, 1 / 80))))[metric]
        for _ in range(500)
    ]
    result = interval(answers, metric, num_resamples=500)
    assert (result.low, result.high) == pytest.approx(np.quantile(values, [0.025, 0.975]))


def test_paired_answers_are_compared_on_the_same_resamples() -> None:
    first = draw(0)
    worse = Tallies(
        first.ids, {**first.counts, "overlap": first.counts["overlap"] - 0.05}, first.figures
    )
    result = compare(first, worse, "overlap")
    assert (result.difference, result.low, result.high) == pytest.approx(
        (0.05, 0.05, 0.05)
    )  # what is hard for both cancels out
    assert not result.is_tie
    assert pooling.compare([first, first], [worse], "overlap").difference == pytest.approx(0.05)
    with pytest.raises(ConfigError, match="two predictions of the same rows"):
        compare(
            first,
            LabelResults(np.eye(2, dtype=bool)[[0, 1]], np.eye(2, dtype=bool)[[0, 1]]),
            "overlap",
        )


def test_rows_answered_twice_are_drawn_together() -> None:
    one = draw(0)
    twice = Tallies(
        one.ids * 2, {name: np.tile(column, 2) for name, column in one.counts.items()}, one.figures
    )
    aware = twice.in_units(np.tile(np.arange(80), 2))
    assert num_rows(aware) == 80
    result, other = interval(aware, "overlap"), interval(one, "overlap")
    assert (result.low, result.high) == pytest.approx((other.low, other.high))
    assert interval(twice, "overlap").low > result.low + 0.01


def test_a_figure_that_all_rows_agree_on_is_as_sure_as_the_rows_it_is_about() -> None:
    right = np.ones(50)
    figures = {"f1_micro": micro_f1}
    answers = Tallies(
        tuple(map(str, range(50))),
        {"true": right, "said": right, "both": right},
        figures,
        supports={"f1_micro": 10},
    )
    assert interval(answers, "f1_micro").low == pytest.approx(0.025 ** (1 / 10))
    with pytest.raises(
        ConfigError, match=r"'f1_mikro' has no bootstrap interval.*did you mean 'f1_micro'"
    ):
        interval(answers, "f1_mikro")
