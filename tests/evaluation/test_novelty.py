"""A cloud of embeddings: what lies outside is far, what is like its rows is near, and the limit is
of rows that it has not seen."""

import numpy as np
import pytest

from medray.evaluation.novelty import LEAST_ROWS, Cloud

WIDTH = 64


def rows(number: int, *, seed: int, away: float = 0.0) -> np.ndarray:
    """Spread along eight directions of many, and a little along all."""
    axes = np.random.default_rng(0).normal(size=(8, WIDTH))
    cloud = np.random.default_rng(seed)
    return cloud.normal(size=(number, 8)) @ axes + 0.1 * cloud.normal(size=(number, WIDTH)) + away


def fit(number: int = 200) -> Cloud:
    cloud = Cloud.fit(rows(number, seed=1))
    assert cloud is not None
    return cloud


def test_fresh_rows_like_its_own_lie_within_the_limit_and_others_beyond() -> None:
    cloud = fit()
    fresh = cloud.distances(rows(2000, seed=2))
    assert (fresh > cloud.limit).mean() < 0.04
    assert fresh.mean() == pytest.approx(1, abs=0.3)
    assert (cloud.distances(rows(100, seed=3, away=0.5)) > cloud.limit).all()


def test_the_limit_is_above_what_the_rows_it_was_made_of_would_say() -> None:
    cloud = fit(60)
    assert cloud.limit > np.quantile(cloud.distances(rows(60, seed=1)), 0.99)


def test_few_rows_make_no_cloud_and_rows_that_are_all_the_same_make_one() -> None:
    assert Cloud.fit(rows(LEAST_ROWS - 1, seed=1)) is None
    assert Cloud.fit([]) is None
    assert Cloud.fit(np.full((LEAST_ROWS, 4), np.nan)) is None
    same = Cloud.fit(np.ones((LEAST_ROWS, 4)))
    assert same is not None
    assert same.distances(np.ones((1, 4))) <= same.limit < same.distances(np.zeros((1, 4)))


def test_a_cloud_is_the_same_after_it_was_stored() -> None:
    cloud = fit()
    again = Cloud.from_arrays(cloud.arrays())
    assert again.limit == pytest.approx(cloud.limit)
    np.testing.assert_allclose(
        again.distances(rows(5, seed=4)), cloud.distances(rows(5, seed=4)), rtol=1e-6
    )
    assert sum(array.nbytes for array in cloud.arrays().values()) < 20 * 4 * WIDTH


def test_of_many_rows_some_are_enough() -> None:
    many, cloud = Cloud.fit(rows(5000, seed=1)), fit(1000)
    assert many is not None
    fresh = rows(500, seed=2)
    assert np.corrcoef(many.distances(fresh), cloud.distances(fresh))[0, 1] > 0.9
    assert many.limit == pytest.approx(cloud.limit, rel=0.2)
