"""Draws are numbered, seeded, within its axes, and never the same twice."""

import math

import pytest

from medray.config.schema import validate
from medray.config.search import KINDS, Axis
from medray.errors import ConfigError
from medray.study import samplers

SPACE = {
    "lora.r": Axis(choice=(4, 8, 16)),
    "train.learning_rate": Axis(loguniform=(1e-5, 1e-2)),
    "lora.dropout": Axis(uniform=(0.0, 0.3)),
    "train.epochs": Axis(randint=(2, 4)),
    "lora.alpha": Axis(qloguniform=(4, 64, 4)),
}


def all_draws(
    algorithm: str, space: dict[str, Axis], num: int, seed: int = 0
) -> list[dict[str, object]]:
    sampler = samplers.make(algorithm, space, num, seed=seed, base_model="m")
    draws = [sampler.draw(number) for number in range(sampler.num_trials)]
    return [settings for settings in draws if settings is not None]


@pytest.mark.parametrize("algorithm", ["random", "optuna"])
def test_every_draw_lies_on_its_axes_and_a_seed_repeats_it(algorithm: str) -> None:
    space = (
        SPACE
        if algorithm == "random"
        else {path: axis for path, axis in SPACE.items() if axis.kind != "qloguniform"}
    )
    draws = all_draws(algorithm, space, 40)
    assert len(draws) == 40
    for settings in draws:
        assert settings["lora.r"] in (4, 8, 16)
        assert 1e-5 <= settings["train.learning_rate"] <= 1e-2
        assert 0 <= settings["lora.dropout"] <= 0.3
        assert settings["train.epochs"] in (2, 3, 4)
        assert settings.get("lora.alpha", 4) % 4 == 0
    assert {settings["train.epochs"] for settings in draws} == {2, 3, 4}
    below = sum(settings["train.learning_rate"] < math.sqrt(1e-5 * 1e-2) for settings in draws)
    assert 8 <= below <= 32  # on a log scale half lie below the middle
    assert all_draws(algorithm, space, 40) == draws
    assert all_draws(algorithm, space, 40, seed=1) != draws


def test_a_random_draw_depends_on_its_number_alone_so_a_study_goes_on_where_it_was() -> None:
    whole = all_draws("random", SPACE, 10)
    later = samplers.make("random", SPACE, 10, seed=0, base_model="m")
    assert later.draw(7) == whole[7]
    assert samplers.make("random", SPACE, 10, seed=0, base_model="other").draw(7) != whole[7]


def test_a_grid_runs_each_point_once_and_random_crosses_its_grid_axes_with_draws() -> None:
    space = {"lora.r": Axis(grid=(4, 8)), "train.epochs": Axis(choice=(1, 2, 3))}
    points = all_draws("grid", space, 1)
    assert sorted((point["lora.r"], point["train.epochs"]) for point in points) == [
        (r, e) for r in (4, 8) for e in (1, 2, 3)
    ]
    draws = all_draws(
        "random", {"lora.r": Axis(grid=(4, 8)), "lora.dropout": Axis(uniform=(0, 1))}, 3
    )
    assert [point["lora.r"] for point in draws] == [4, 8] * 3


def test_a_small_space_is_exhausted_rather_than_repeated() -> None:
    assert len(all_draws("random", {"lora.r": Axis(choice=(4, 8))}, 10)) == 2


def test_without_axes_there_is_one_trial() -> None:
    assert all_draws("random", {}, 5) == [{}]


def test_tpe_learns_from_what_it_is_told() -> None:
    sampler = samplers.make(
        "optuna", {"lora.dropout": Axis(uniform=(0.0, 1.0))}, 60, seed=0, base_model="m"
    )
    draws = []
    for number in range(60):
        settings = sampler.draw(number)
        assert settings is not None
        draws.append(settings["lora.dropout"])
        sampler.tell(settings, -abs(settings["lora.dropout"] - 0.2))
    early, late = draws[:10], draws[-20:]
    assert (
        sum(abs(value - 0.2) for value in late) / 20
        < 0.5 * sum(abs(value - 0.2) for value in early) / 10
    )


def test_optuna_hears_of_trials_of_an_earlier_process_and_of_failed_ones() -> None:
    sampler = samplers.make("optuna", {"lora.r": Axis(choice=(4, 8))}, 5, seed=0, base_model="m")
    assert isinstance(sampler, samplers.Optuna)
    sampler.tell({"lora.r": 8}, 0.9)
    settings = sampler.draw(1)
    assert settings is not None
    sampler.tell(settings, None)
    assert [trial.state.name for trial in sampler.study.trials] == ["COMPLETE", "FAIL"]


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (
            {"choice": [1], "grid": [2]},
            f"needs exactly one of {', '.join(KINDS)}; found choice, grid",
        ),
        ({}, "found none"),
        ({"uniform": [2, 1]}, "low 2.0 must be less than high 1.0"),
        ({"loguniform": [0, 1]}, "low 0.0 must be above 0"),
        ({"qloguniform": [1, 2, 3]}, "step 3.0 must be above 0 and at most"),
        ({"logunifrom": [1, 2]}, "did you mean 'loguniform'"),
    ],
)
def test_a_wrong_axis_is_told(raw: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(Axis, raw, where="axis")
    assert sentence in str(error.value)


def test_an_optuna_study_that_goes_on_does_not_draw_its_first_settings_again() -> None:
    space = {"train.learning_rate": Axis(loguniform=(1e-5, 1e-2))}
    first = samplers.make("optuna", space, 8, seed=0, base_model="m")
    early = [first.draw(number) for number in range(4)]
    later = samplers.make("optuna", space, 8, seed=0, base_model="m")
    for settings in early:
        later.tell(settings or {}, 0.5)
    assert later.draw(4) not in early
