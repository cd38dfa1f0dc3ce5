"""Several trials in one process on one frozen base: each must compute what it computes alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import tiny

from medray.config.study import TrainConfig
from medray.errors import TrialError
from medray.models.cpu.lora import quicken
from medray.training.slot import Slot, Stopper, open_slot, rate_factor
from medray.training.strategies.torch import Strategy
from medray.training.trial import Trial


def alone(folder: Path, seed: int) -> Trial:
    trial = tiny.trial(tiny.study(folder, f"seed={seed}", "train.epochs=1"), folder / str(seed))
    trial.loop = trial._loop()
    return trial


def beside(trial: Trial, other: Trial) -> Slot:
    """The other trial's adapter and head as a second slot on this trial's base."""
    model = trial.built.model
    model.add_adapter("second", model.peft_config["default"])
    quicken(model)
    model.set_adapter("second")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".second." in name:
                parameter.copy_(other.slot.parameters[name.replace(".second.", ".default.")])
    stopper = replace(trial.slot.stopper)
    slot = open_slot(
        model,
        trial.built.family.head_modules,
        trial.config.train,
        num_steps=trial.slot.num_steps,
        seed=other.config.seed,
        stopper=stopper,
        adapter="second",
    )
    assert all(".second." in name for name in slot.parameters)
    return slot


def test_two_slots_on_one_frozen_base_train_as_each_does_alone(tmp_path: Path) -> None:
    first, second = alone(tmp_path, 1), alone(tmp_path, 2)
    expected = {}
    for trial in (first, second):
        trial.loop.evaluate = lambda slot: {"f1_macro": 0.0}
        trial.loop.report = lambda slot, report: None
        trial.loop.store_state = lambda: None
        trial.loop.run()
        expected[trial.config.seed] = {name: parameter.detach().clone() for name, parameter in trial.slot.parameters.items()}

    pack, fresh = alone(tmp_path, 1), alone(tmp_path, 2)
    slots = [pack.slot, beside(pack, fresh)]
    pack.loop.slots = slots
    pack.loop.strategy = Strategy(slots, pack.config.train, precision="fp32", device="cpu")
    pack.loop.evaluate, pack.loop.report, pack.loop.store_state = (
        (lambda slot: {"f1_macro": 0.0}),
        (lambda slot, report: None),
        lambda: None,
    )
    pack.loop.run()
    for slot, seed in zip(slots, (1, 2), strict=True):
        assert slot.step == slot.num_steps
        for name, parameter in slot.parameters.items():
            torch.testing.assert_close(parameter, expected[seed][name.replace(".second.", ".default.")], rtol=1e-5, atol=1e-6)


def test_a_strategy_that_takes_one_slot_refuses_two(tmp_path: Path) -> None:
    trial = alone(tmp_path, 1)
    trial.loop.strategy.max_slots = 1
    with pytest.raises(TrialError, match=r"takes 1 slot\(s\), not 2"):
        replace(trial.loop, slots=[trial.slot, trial.slot])


def test_the_head_has_its_own_rate_and_vectors_are_not_decayed(tmp_path: Path) -> None:
    trial = tiny.trial(tiny.study(tmp_path, "train.head_learning_rate=0.5", "train.weight_decay=0.1"), tmp_path)
    for name, parameter in trial.slot.parameters.items():
        (group,) = [group for group in trial.slot.optimizer.param_groups if any(parameter is member for member in group["params"])]
        assert group["initial_lr"] == (0.5 if "classifier" in name else 0.01)
        assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_rate_warms_up_and_no_step_is_wasted_on_a_rate_of_zero(schedule: str) -> None:
    train = TrainConfig.model_validate({"epochs": 1, "schedule": schedule, "warmup_ratio": 0.25})
    factors = [rate_factor(step, 20, train) for step in range(20)]
    assert factors[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])
    assert min(factors) > 0
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert rate_factor(2, 20, train.model_copy(update={"warmup_ratio": None, "warmup_steps": 2})) == 1.0


def test_a_stopper_never_takes_a_nan_for_the_best_and_counts_it_as_worse() -> None:
    stopper = Stopper("f1_macro", higher_is_better=True, patience=2)
    assert [stopper.update(value, step) for step, value in enumerate((float("nan"), 0.5, 0.5, 0.6, float("nan"), 0.1))] == [
        False,
        True,
        False,
        True,
        False,
        False,
    ]
    assert (stopper.best, stopper.best_step, stopper.stop) == (0.6, 3, True)
    lower = Stopper("log_loss", higher_is_better=False, patience=None)
    assert [lower.update(value, step) for step, value in enumerate((0.5, 0.6, 0.4))] == [True, False, True]
    assert not lower.stop
