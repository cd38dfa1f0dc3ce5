"""A step gives the same result with one worker, two workers or shards. Two ranks run all jobs."""

import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import gloo, tiny
from support.gloo import Job, JobResult

from medray.errors import ConfigError
from medray.registry import loading

# 33 rows in steps of 8: the last of an epoch holds one row, so that one of two workers has none;
# small budgets make several micro-batches.
SETTINGS = (
    "data.limit=33",
    "lora.dropout=0.0",
    "task.class_weights={cancer: 5.0}",
    "train={max_steps: 7, evaluate_every_steps: 3, state_every_steps: 1, samples_per_step: 8, "
    "token_budget: 60, learning_rate: 0.01, "
    "head_learning_rate: 0.02, weight_decay: 0.1, schedule: cosine}",
)


def zero(stage: int, *more: str) -> tuple[str, ...]:
    return (*SETTINGS, "train.strategy=deepspeed", f"train.zero_stage={stage}", *more)


TWO_WORKERS = {
    "torch": SETTINGS,
    **{f"zero {stage}": zero(stage) for stage in range(4)},
    "zero 2, offloaded": zero(2, "train.offload_optimizer=true"),
    "zero 2, nf4": zero(2, "model.quantization=nf4"),
    "zero 3, nf4": zero(3, "model.quantization=nf4"),
    "zero 2, bf16": zero(2, "model.precision=bf16"),
    "zero 0, fp16": zero(0, "model.precision=fp16"),
    "zero 2, fp16": zero(2, "model.precision=fp16"),
    "zero 3, fp16": zero(3, "model.precision=fp16"),
}
FP16 = (*SETTINGS, "model.precision=fp16")
INTERRUPT = {"torch": SETTINGS, "zero 2": zero(2)}  # SECOND_LEG stores the state of stage 3
SECOND_LEG = {"torch": SETTINGS, "zero 2": zero(2), "zero 3": zero(3)}
# What only the slow tests run. A job of stage 3 takes five times as long as one of stage 2.
BREADTH = ("zero 0", "zero 1", "zero 2, offloaded", "zero 0, fp16", "zero 3, fp16")


def of(names: Iterable[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "name",
        [pytest.param(name, marks=pytest.mark.slow) if name in BREADTH else name for name in names],
    )


class Outcomes:
    def __init__(self, place: Path, names: Collection[str]) -> None:
        """Run the jobs of one worker, and those of TWO_WORKERS with these names."""
        two = {name: settings for name, settings in TWO_WORKERS.items() if name in names}
        tiny.study(place, *SETTINGS)  # base and rows, made once for all processes
        self.plain = gloo.alone(Job(place / "plain", SETTINGS))
        self.nf4 = gloo.alone(Job(place / "nf4", (*SETTINGS, "model.quantization=nf4")))
        self.fp16 = gloo.alone(Job(place / "fp16", FP16))
        self.bf16 = gloo.alone(Job(place / "bf16", (*SETTINGS, "model.precision=bf16")))
        choice = (*SETTINGS[:2], SETTINGS[3])
        tiny.choice_study(place, *choice)
        self.choice = gloo.alone(Job(place / "choice", choice, choice=True))
        first = gloo.alone(Job(place / "first", SETTINGS, stop_after=3))
        jobs = [Job(place / name, settings) for name, settings in two.items()]
        for name, settings in SECOND_LEG.items():
            shutil.copytree(place / "first", place / f"legs of {name}")
            jobs.append(Job(place / f"legs of {name}", settings, resume=True, stop_after=5))
        for name, settings in INTERRUPT.items():
            changes = [each.replace("state_every_steps: 1, ", "") for each in settings]
            jobs.append(Job(place / f"interrupted {name}", tuple(changes), interrupt_in=5))
            jobs.append(Job(place / f"interrupted {name}", tuple(changes), resume=True))
        self.one = dict(
            zip(
                ("zero 2", "zero 3"),
                gloo.run([Job(place / "one 2", zero(2)), Job(place / "one 3", zero(3))], 1),
                strict=True,
            )
        )
        bf16, in_16_bits = "model.precision=bf16", place / "16 bits"
        in_16_bits.mkdir()
        tiny.round_base(tiny.base(in_16_bits, "bert"))
        tiny.study(in_16_bits, *SETTINGS)
        self.plain_bf16 = gloo.alone(Job(in_16_bits / "plain", (*SETTINGS, bf16)))
        narrow = {
            f"zero {stage}": Job(in_16_bits / f"{stage}", zero(stage, bf16), keeps_16_bits=True)
            for stage in (2, 3)
        }
        zero_3 = ("train.strategy=deepspeed", "train.zero_stage=3")
        sharded_choice = Job(place / "choice, zero 3", (*choice, *zero_3), choice=True)
        results = gloo.run([sharded_choice, *narrow.values(), *jobs], num_ranks=2)
        self.sharded_choice = results.pop(0)
        self.narrow = {name: results.pop(0) for name in narrow}
        self.two = dict(zip(two, results, strict=False))
        self.legs: dict[str, list[JobResult]] = {}
        results = results[len(two) :]
        legs = results[len(SECOND_LEG) :]
        self.interrupts = dict(zip(INTERRUPT, zip(legs[::2], legs[1::2], strict=True), strict=True))
        for name, second in zip(SECOND_LEG, results, strict=False):
            last = gloo.alone(Job(place / f"legs of {name}", SETTINGS, resume=True))
            self.legs[name] = [first, second, last]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    pytest.importorskip("deepspeed")
    breadth = any(
        getattr(item, "callspec", None) and item.callspec.params.get("name") in BREADTH
        for item in request.session.items
    )
    return Outcomes(
        tmp_path_factory.mktemp("strategies"),
        [name for name in TWO_WORKERS if breadth or name not in BREADTH],
    )


def figures(history: list[dict[str, Any]]) -> list[float]:
    return [value for row in history for value in (row["train_loss"], row["metrics"]["log_loss"])]


@of(["torch", "zero 0", "zero 1", "zero 2", "zero 3", "zero 2, offloaded"])
def test_two_workers_compute_what_one_does(outcomes: Outcomes, name: str) -> None:
    two = outcomes.two[name]
    assert len(set(outcomes.plain.losses)) == 7
    assert two.losses == pytest.approx(outcomes.plain.losses, abs=1e-5)
    assert figures(two.history) == pytest.approx(figures(outcomes.plain.history), abs=1e-5)


def test_a_choice_whose_output_layer_computes_answers_alone_trains_in_shards(
    outcomes: Outcomes,
) -> None:
    assert outcomes.sharded_choice.losses == pytest.approx(outcomes.choice.losses, abs=1e-5)
    assert figures(outcomes.sharded_choice.history) == pytest.approx(
        figures(outcomes.choice.history), abs=1e-5
    )


@pytest.mark.parametrize("name", ["zero 2", "zero 3"])
def test_one_worker_in_the_process_of_its_trial_may_use_deepspeed_too(
    outcomes: Outcomes, name: str
) -> None:
    assert outcomes.one[name].losses == pytest.approx(outcomes.plain.losses, abs=1e-5)
    assert outcomes.one[name].engine == "DeepSpeedEngine"


@of([name for name in TWO_WORKERS if name != "torch"])
def test_it_is_really_deepspeed_that_takes_the_steps(outcomes: Outcomes, name: str) -> None:
    assert outcomes.two[name].engine == "DeepSpeedEngine"


@pytest.mark.parametrize("name", ["zero 2, nf4", "zero 3, nf4"])
def test_a_base_in_4_bits_trains_beside_shards_and_in_them(outcomes: Outcomes, name: str) -> None:
    assert outcomes.two[name].losses == pytest.approx(outcomes.nf4.losses, abs=1e-5)
    assert outcomes.nf4.losses != pytest.approx(outcomes.plain.losses, abs=1e-4)


def test_the_arithmetic_is_bf16_if_it_is_set(outcomes: Outcomes) -> None:
    assert outcomes.two["zero 2, bf16"].losses == pytest.approx(outcomes.bf16.losses, abs=2e-2)
    assert outcomes.two["zero 2, bf16"].losses != pytest.approx(outcomes.plain.losses, abs=1e-4)


@pytest.mark.parametrize("name", ["zero 2", "zero 3"])
def test_a_frozen_base_in_16_bits_trains_beside_shards_and_in_them(
    outcomes: Outcomes, name: str
) -> None:
    narrow, plain = outcomes.narrow[name], outcomes.plain_bf16
    assert narrow.losses == pytest.approx(plain.losses, abs=5e-3)
    assert (narrow.num_narrow > 20, plain.num_narrow) == (True, 0)
    for path in narrow.checkpoints:
        loading.load(path)  # its probe is that of the base in fp32


@of(["zero 0, fp16", "zero 2, fp16", "zero 3, fp16"])
def test_fp16_under_deepspeed_scales_its_loss_as_plain_torch_does(
    outcomes: Outcomes, name: str
) -> None:
    assert outcomes.two[name].losses == pytest.approx(outcomes.fp16.losses, abs=5e-3)
    assert outcomes.two[name].losses != pytest.approx(outcomes.plain.losses, abs=1e-5)
    assert outcomes.two[name].scale == outcomes.fp16.scale


@pytest.mark.parametrize("name", list(INTERRUPT))
def test_an_interrupted_trial_stores_its_state_after_the_step_that_is_under_way_on_every_worker(
    outcomes: Outcomes, name: str
) -> None:
    """Without `state_every_steps`, the last state would be that of the evaluation after step 3."""
    first, second = outcomes.interrupts[name]
    assert (len(first.losses), len(second.losses)) == (5, 2)
    assert [*first.losses, *second.losses] == pytest.approx(outcomes.plain.losses, abs=1e-5)
    assert figures(second.history) == pytest.approx(figures(outcomes.plain.history), abs=1e-5)


def test_only_stage_3_takes_weights_apart(outcomes: Outcomes) -> None:
    """DeepSpeed keeps weights whole that it needs again soon."""
    num_weights = {name: results.num_whole for name, results in outcomes.two.items()}
    assert {
        num_weights[name] for name in num_weights if name in ("zero 0", "zero 1", "zero 2")
    } == {num_weights["torch"]}
    assert num_weights["zero 3"] < num_weights["torch"] / 2
    assert num_weights["zero 3, nf4"] < num_weights["zero 2, nf4"] / 2
    moves = {name: results.num_moves for name, results in outcomes.two.items()}
    assert moves["zero 2"] == num_weights["torch"]
    assert (moves["zero 3"], moves["zero 3, nf4"]) == (0, 0), "in shards before they are moved"


def test_deepspeed_reserves_as_much_for_gradients_as_there_are(outcomes: Outcomes) -> None:
    assert 0 < outcomes.two["zero 2"].bucket == outcomes.two["zero 3"].bucket < 50_000


@pytest.mark.parametrize("name", list(SECOND_LEG))
def test_a_trial_goes_on_with_another_number_of_workers_and_another_strategy(
    outcomes: Outcomes, name: str
) -> None:
    legs = outcomes.legs[name]
    assert [len(leg.losses) for leg in legs] == [3, 2, 2]
    assert [loss for leg in legs for loss in leg.losses] == pytest.approx(
        outcomes.plain.losses, abs=1e-5
    )
    assert figures(legs[-1].history) == pytest.approx(figures(outcomes.plain.history), abs=1e-5)


@pytest.mark.parametrize("name", ["zero 2", "zero 3", "zero 3, nf4"])
def test_a_checkpoint_from_shards_is_whole(outcomes: Outcomes, name: str) -> None:
    """Loading compares the outputs of the probe, in a process without shards."""
    for from_shards, plain in zip(
        outcomes.two[name].checkpoints,
        (outcomes.nf4 if "nf4" in name else outcomes.plain).checkpoints,
        strict=True,
    ):
        outputs, reference = (
            loading.load(path).manifest.probe.outputs for path in (from_shards, plain)
        )
        torch.testing.assert_close(
            torch.tensor(outputs), torch.tensor(reference), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            ["train.strategy=ddp"],
            r"strategy ddp: strategy torch is that, where resources\.num_workers is more than 1",
        ),
        (
            ["train.strategy=deepspeed"],
            r"train\.zero_stage None and train\.strategy deepspeed: set the stage to 0, 1, 2 or 3",
        ),
        (
            ["train.zero_stage=2"],
            (
                r"train\.zero_stage 2, .* and train\.strategy torch: sharding needs "
                r"train\.strategy deepspeed"
            ),
        ),
        (
            [*zero(0), "train.offload_optimizer=true"],
            r"train\.offload_optimizer True and train\.zero_stage 0: only stages 1 to 3",
        ),
        (
            [*zero(3), "model.precision=auto"],
            r"model\.precision auto and train\.zero_stage 3: .*set bf16 or fp32",
        ),
        (
            [*zero(3), "lora.dtype=bf16"],
            r"lora\.dtype bf16 and train\.zero_stage 3: .* the head is in fp32; set lora\.dtype",
        ),
        (
            ["resources.num_workers=[2, 9]"],
            (
                r"train\.samples_per_step 8 and resources\.num_workers \(2, 9\): each worker needs "
                r"a row in every step"
            ),
        ),
        (
            ["resources.num_workers=[3, 2]"],
            r"num_workers \(3, 2\): at least 1, and of two numbers the smaller one first",
        ),
        (["resources.num_workers=0"], "num_workers 0: at least 1"),
        (
            ["resources.num_workers=2", "resources.gpus_per_worker=0.5"],
            r"gpus_per_worker 0\.5 and num_workers 2: workers of one trial cannot share a GPU",
        ),
        (
            ["resources.gpus_per_worker=2"],
            r"gpus_per_worker 2: a worker computes on one GPU; set at most 1, and num_workers",
        ),
    ],
)
def test_what_a_strategy_cannot_do_is_an_error_before_a_study_starts(
    tmp_path: Path, settings: list[str], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        tiny.study(tmp_path, *settings)
