"""The state of a trial: its learning rates, and the choice of its best evaluation."""

from pathlib import Path

import pytest
from support import tiny

from medray.config.trial import TrainConfig
from medray.training.slot import Stopper, rate_factor


def test_the_head_has_its_own_rate_and_vectors_are_not_decayed(tmp_path: Path) -> None:
    trial = tiny.trial(
        tiny.study(tmp_path, "train.head_learning_rate=0.5", "train.weight_decay=0.1"), tmp_path
    )
    for name, parameter in trial.slot.parameters.items():
        (group,) = [
            group
            for group in trial.slot.optimizer.param_groups
            if any(parameter is member for member in group["params"])
        ]
        assert group["initial_lr"] == (0.5 if "classifier" in name else 0.01)
        assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_rate_warms_up_and_no_step_is_wasted_on_a_rate_of_zero(schedule: str) -> None:
    train = TrainConfig.model_validate({"epochs": 1, "schedule": schedule, "warmup_ratio": 0.25})
    factors = [rate_factor(step, 20, train) for step in range(20)]
    assert factors[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])
    assert min(factors) > 0
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert (
        rate_factor(2, 20, train.model_copy(update={"warmup_ratio": None, "warmup_steps": 2}))
        == 1.0
    )


def test_a_stopper_never_takes_a_nan_for_the_best_and_counts_it_as_worse() -> None:
    stopper = Stopper("f1_macro", higher_is_better=True, patience=2)
    assert [
        stopper.update(value, step)
        for step, value in enumerate((float("nan"), 0.5, 0.5, 0.6, float("nan"), 0.1))
    ] == [
        False,
        True,
        False,
        True,
        False,
        False,
    ]
    assert (stopper.best, stopper.best_step, stopper.stop) == (0.6, 3, True)
    lower = Stopper("log_loss", higher_is_better=False, patience=None)
    assert [lower.update(value, step) for step, value in enumerate((0.5, 0.6, 0.4))] == [
        True,
        False,
        True,
    ]
    assert not lower.stop
