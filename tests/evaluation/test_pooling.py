"""Means over seeds: what they are, how sure they are, and which seed is published."""

import numpy as np
import pytest

from medray.evaluation import bootstrap, leaderboard, pooling
from medray.evaluation.bootstrap import LabelResults
from medray.evaluation.leaderboard import Contender, Entry


def answers(share_right: float, *, rows: int = 200, seed: int = 0) -> LabelResults:
    rng = np.random.default_rng(seed)
    truth = np.zeros((rows, 2), dtype=bool)
    truth[np.arange(rows), np.arange(rows) % 2] = True
    wrong = rng.random(rows) >= share_right
    return LabelResults(truth, np.where(wrong[:, None], ~truth, truth), 0)


def contender_of(name: str, result: LabelResults, validation: float) -> Contender:
    test = float(result.values("f1_macro", np.ones((1, len(result.truth))))[0])
    entry = Entry(
        name,
        "trial",
        validation={"f1_macro": validation},
        test={"f1_macro": test},
        checkpoint=f"/{name}",
        num_parameters=10,
    )
    return Contender(entry, result, result)


def test_one_seed_is_what_it_was() -> None:
    one, other = answers(0.9), answers(0.8, seed=1)
    assert pooling.interval([one], "f1_macro") == bootstrap.interval(one, "f1_macro")
    assert pooling.compare([one], [other], "f1_macro") == bootstrap.compare(one, other, "f1_macro")
    single = contender_of("a", one, 0.9)
    assert leaderboard.pool_seeds([single], "f1_macro") is single


def test_seeds_that_differ_widen_the_interval_of_their_mean_and_equal_ones_do_not() -> None:
    same = answers(0.85)
    of_rows = bootstrap.interval(same, "f1_macro")
    equal = pooling.interval([same] * 3, "f1_macro")
    assert (equal.low, equal.high) == pytest.approx((of_rows.low, of_rows.high))
    apart = pooling.interval(
        [answers(0.95), answers(0.85, seed=1), answers(0.7, seed=2)], "f1_macro"
    )
    assert apart.high - apart.low > 1.3 * (of_rows.high - of_rows.low)
    assert apart.low < 0.83 < apart.high


def test_means_are_compared_on_the_same_rows() -> None:
    good, poor = (
        [answers(0.95, seed=seed) for seed in range(3)],
        [answers(0.7, seed=seed) for seed in (3, 4)],
    )
    result = pooling.compare(good, poor, "f1_macro")
    assert result.low > 0.15
    assert result.difference == pytest.approx(
        np.mean(
            [
                pooling.compare([one], [other], "f1_macro").difference
                for one in good
                for other in poor
            ]
        )
    )
    assert pooling.compare(good, good[::-1], "f1_macro").is_tie


def test_the_best_seed_on_validation_is_published_and_the_mean_is_reported() -> None:
    seeds = [
        contender_of("t", answers(0.9), 0.80),
        contender_of("t-seed-1", answers(0.7, seed=1), 0.90),
        contender_of("t-seed-2", answers(0.8, seed=2), 0.85),
    ]
    result = leaderboard.pool_seeds(seeds, "f1_macro")
    assert (result.entry.name, result.entry.checkpoint) == ("t", "/t-seed-1")
    assert result.entry.validation["f1_macro"] == pytest.approx(0.85)
    assert result.entry.test["f1_macro"] == pytest.approx(
        np.mean([seed.entry.test["f1_macro"] for seed in seeds])
    )
    assert result.entry.seeds is not None
    assert result.entry.seeds.published == "t-seed-1"
    assert len(result.all) == 3
    other = contender_of("other", answers(0.9, seed=7), 0.84)
    board = leaderboard.conclude(
        "s", "f1_macro", [seeds[0].entry, other.entry], [result, other], [], 1
    )
    assert (board.winner, board.runner_up) == ("t", "other")


def test_a_row_that_several_folds_answered_is_drawn_once() -> None:
    one = answers(0.8)
    twice = LabelResults(
        np.tile(one.truth, (2, 1)), np.tile(one.predictions, (2, 1)), 0, np.tile(np.arange(200), 2)
    )
    assert bootstrap.num_rows(twice) == 200
    once, of_twice = bootstrap.interval(one, "f1_macro"), bootstrap.interval(twice, "f1_macro")
    assert (of_twice.low, of_twice.high) == pytest.approx((once.low, once.high))
    unaware = bootstrap.interval(LabelResults(twice.truth, twice.predictions, 0), "f1_macro")
    assert unaware.high - unaware.low < 0.8 * (once.high - once.low)
