"""The training loop: settings that must not change a gradient, resuming, and running out of
memory."""

import logging
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny

from medray.errors import TrialError
from medray.records import Evaluation
from medray.training import stop
from medray.training.loop import Loop, TrialInterrupt
from medray.training.plan import MicroBatch
from medray.training.trial import Trial


def weights_of(trial: Trial) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trial.slot.parameters.items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return (
        all(torch.equal(first[name], second[name]) for name in first)
        and first.keys() == second.keys()
    )


def gradients(folder: Path, *settings: str) -> dict[str, torch.Tensor]:
    """Return the gradients of one step over 8 rows, before the optimizer changes anything."""
    trial = tiny.trial(tiny.study(folder, "lora.dropout=0", *settings), folder)
    trial.loop = trial.make_loop()
    step = trial.loop.steps()[0]
    trial.loop.accumulate(step, step.ranks[0])
    sizes = {len(batch.rows) for batch in step.ranks[0]}
    assert sizes == {8} or len(sizes) > 1  # micro-batches of one size would hide a mean of means
    return {name: parameter.grad.clone() for name, parameter in trial.slot.parameters.items()}


@pytest.mark.parametrize("weighting", ["none", "balanced", "{cancer: 5.0}"])
def test_micro_batching_changes_no_gradient(tmp_path: Path, weighting: str) -> None:
    whole = gradients(tmp_path, "train.token_budget=100000", f"task.class_weights={weighting}")
    cut = gradients(tmp_path, "train.token_budget=120", f"task.class_weights={weighting}")
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-3
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_the_weighted_mean_over_the_rows_of_the_step(tmp_path: Path) -> None:
    trial = tiny.trial(
        tiny.study(
            tmp_path, "lora.dropout=0", "task.class_weights={cancer: 5.0}", "train.token_budget=40"
        ),
        tmp_path,
    )
    loop = trial.make_loop()
    step = loop.steps()[0]
    loss = loop.accumulate(step, step.ranks[0])
    alone = [float(loop.loss(MicroBatch((row,))).detach().sum()) for row in step.rows]
    mean = sum(alone) / loop.row_loss.weights[list(step.rows)].sum()
    assert len(step.ranks[0]) > 1
    assert loss == pytest.approx(mean, rel=1e-5)


@pytest.mark.document(
    "001",
    "the Trainer of transformers trains",
    where="`medray/training/loop.py`",
    how="by a loop of medray's own",
)
def test_training_learns(tmp_path: Path) -> None:
    reports = []
    trial = tiny.trial(
        tiny.study(tmp_path, "train.epochs=6", num_rows=120), tmp_path, report=reports.append
    )
    result = trial.run()
    assert [report.epoch for report in reports] == [1, 2, 3, 4, 5, 6]
    assert reports[-1].train_loss < reports[0].train_loss / 2
    assert result.best.metrics["f1_macro"] == max(report.metrics["f1_macro"] for report in reports)
    assert trial.slot.num_tokens == 6 * trial.rows.lengths.sum()


class Kill(Exception):
    pass


@pytest.mark.parametrize(
    ("at_micro_batch", "why", "quantization"),
    [
        (2, "before any state", "none"),
        (8, "mid-accumulation", "none"),
        (13, "mid-accumulation, after a state in mid-epoch", "none"),
        (20, "in the second epoch", "none"),
        (20, "in the second epoch", "nf4"),
    ],
)
@pytest.mark.document(
    "004",
    "checkpoints are saved, an interrupted training goes on",
    where="`medray study --resume`",
)
def test_a_killed_trial_resumes_to_the_same_bits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_micro_batch: int,
    why: str,
    quantization: str,
) -> None:
    settings: tuple[str, ...] = (
        "train.epochs=3",
        "train.token_budget=60",
        "train.state_every_steps=2",
        "train.warmup_ratio=0.2",
        "train.schedule=cosine",
    )
    settings += (f"model.quantization={quantization}",)
    (tmp_path / "whole").mkdir()
    study = tiny.study(tmp_path, *settings)
    whole = tiny.trial(study, tmp_path / "whole")
    reference = whole.run()

    first_run = tiny.trial(study, tmp_path)
    count = 0
    backward = type(first_run.make_strategy("fp32")).backward

    def counting(self: object, loss: torch.Tensor, *, last: bool) -> None:
        nonlocal count
        count += 1
        if count == at_micro_batch:
            raise Kill(why)
        backward(self, loss, last=last)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(type(first_run.make_strategy("fp32")), "backward", counting)
        with pytest.raises(Kill):
            first_run.run()

    second_run = tiny.trial(study, tmp_path)
    torch.manual_seed(12345)  # a new process has another generator state
    result = second_run.run(resume=True)
    assert same(weights_of(second_run), weights_of(whole))
    timeless, reference_timeless = (
        [replace(row, seconds=0.0, tokens_per_s=0.0) for row in of.history]
        for of in (result, reference)
    )
    assert timeless == reference_timeless
    assert result.best.step == reference.best.step


@pytest.mark.parametrize(
    "step", [2, 6, 12]
)  # in the middle of an epoch; where an evaluation is due; the last one
def test_an_interrupted_trial_loses_no_step_and_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    study = tiny.study(
        tmp_path, "train.epochs=2", "train.evaluate_every_steps=3", "train.samples_per_step=7"
    )
    (tmp_path / "whole").mkdir()
    whole = tiny.trial(study, tmp_path / "whole")
    reference = whole.run()
    assert whole.slot.num_steps == 12

    trial = tiny.trial(study, tmp_path)
    steps: list[int] = []
    take_step = Loop.take_step

    def record_step(self: Loop) -> Any:
        steps.append(self.slot.step + 1)
        if self.slot.step + 1 == step:
            stop.request(trial.folder)  # as the study does it when it gets SIGTERM
            monkeypatch.setattr(stop, "CHECK_INTERVAL_S", 0.0)
        return take_step(self)

    monkeypatch.setattr(Loop, "take_step", record_step)
    with pytest.raises(TrialInterrupt, match=f"after step {step} of 12"):
        trial.run()
    assert not stop.is_pending(trial.folder)
    if step == 2:
        (path,) = trial.folder.glob("state/*/state.pt")
        state = torch.load(path, weights_only=True)
        torch.save(
            {"slots": {"default": state["slot"]}, "scaler": state["scaler"]}, path
        )  # as an earlier medray stored it
    stop.prepare(trial.folder)
    second_run = tiny.trial(study, tmp_path)
    result = second_run.run(resume=True)
    assert steps == list(range(1, 13))
    assert same(weights_of(second_run), weights_of(whole))
    assert [(row.step, row.train_loss, row.metrics) for row in result.history] == [
        (row.step, row.train_loss, row.metrics) for row in reference.history
    ]


@pytest.mark.parametrize(
    ("while_", "stored_after"),
    [("it loads", 1), ("it evaluates", 6), ("its evaluation is reported", 6)],
)
def test_a_trial_that_is_interrupted_where_it_does_not_train_takes_one_step_more_and_stores_it(
    tmp_path: Path, while_: str, stored_after: int
) -> None:
    """Under Ray Train a report does not wait. Without this step, the trial would train on without
    storing its state."""

    def on_report(evaluation: Evaluation) -> None:
        if evaluation.step == 5 and while_ == "its evaluation is reported":
            interrupt()

    def interrupt() -> None:
        stop.request(trial.folder)
        assert not stop.is_pending(
            trial.folder
        )  # a study that is interrupted does not wait for an evaluation

    trial = tiny.trial(tiny.study(tmp_path), tmp_path, report=on_report)
    stop.prepare(trial.folder)
    if while_ == "it loads":
        interrupt()
    evaluate = trial.predict_rows

    def evaluating(*arguments: Any) -> Any:
        if trial.slot.step == 5 and while_ == "it evaluates":
            interrupt()
        return evaluate(*arguments)

    trial.predict_rows = evaluating  # type: ignore[method-assign]
    with pytest.raises(TrialInterrupt, match=f"after step {stored_after} of 10"):
        trial.run()
    assert [path.name for path in (trial.folder / "state").iterdir()] == [
        f"step-{stored_after:06d}"
    ]


def test_the_kill_above_really_hits_the_middle_of_a_step(tmp_path: Path) -> None:
    trial = tiny.trial(tiny.study(tmp_path, "train.token_budget=60"), tmp_path)
    counts = [len(step.ranks[0]) for step in trial.make_loop().steps()]
    ends = np.cumsum(counts)
    assert not {8, 13} & set(ends.tolist())
    assert ends[1] < 13 < ends[-1]


@pytest.mark.document(
    "003",
    "batch size and length are reduced when memory runs out",
    where="`train.token_budget`",
    how="the batch halves by itself, without a change of the result; the length stays",
)
def test_out_of_memory_halves_the_budget_and_repeats_the_step_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = tiny.study(tmp_path, "lora.dropout=0", "train.token_budget=400", "train.epochs=1")
    (tmp_path / "calm").mkdir()
    calm = tiny.trial(study, tmp_path / "calm")
    calm.run()

    trial = tiny.trial(study, tmp_path)
    real = type(trial.make_loop()).loss

    def loss_within_limit(self, batch: MicroBatch):  # type: ignore[no-untyped-def]
        if len(batch.rows) * max(self.rows.lengths[row] for row in batch.rows) > 90:
            raise torch.OutOfMemoryError("no memory")
        return real(self, batch)

    monkeypatch.setattr(type(trial.make_loop()), "loss", loss_within_limit)
    with caplog.at_level(logging.WARNING):
        trial.run()
    assert trial.loop.token_budget <= 90
    assert [
        record.message.count("train.token_budget")
        for record in caplog.records
        if "out of memory" in record.message
    ] == [1]
    for name, parameter in weights_of(calm).items():
        torch.testing.assert_close(weights_of(trial)[name], parameter, rtol=1e-3, atol=1e-4)


def test_the_activations_of_a_step_that_ran_out_of_memory_are_free_before_it_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = tiny.trial(tiny.study(tmp_path, "train.epochs=1"), tmp_path)
    layer = trial.model.network.base_model.model.bert.encoder.layer[1].output
    activations: list[weakref.ref[torch.Tensor]] = []
    num_alive = []

    def run_out(module: Any, inputs: Any, outputs: torch.Tensor) -> None:
        if not activations:
            activations.append(weakref.ref(outputs))
            raise torch.OutOfMemoryError("CUDA out of memory")

    def empty_cache() -> None:
        num_alive.append(sum(activation() is not None for activation in activations))

    layer.register_forward_hook(run_out)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "empty_cache", empty_cache)
        loop = trial.make_loop()
        loop.take_step()
    assert num_alive == [0]


def test_one_row_that_does_not_fit_ends_the_trial_with_the_settings_that_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = tiny.trial(tiny.study(tmp_path), tmp_path)

    def never(self, batch):  # type: ignore[no-untyped-def]
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
        )

    monkeypatch.setattr(type(trial.make_loop()), "loss", never)
    with pytest.raises(TrialError, match=r"one row of .* train\.token_budget, task\.max_length"):
        trial.run()


def test_a_loss_that_is_not_a_number_ends_the_trial(tmp_path: Path) -> None:
    trial = tiny.trial(tiny.study(tmp_path), tmp_path)
    with torch.no_grad():
        next(iter(trial.slot.parameters.values())).fill_(float("nan"))
    with pytest.raises(TrialError, match=r"the loss is nan at step 1 .*lower train\.learning_rate"):
        trial.run()


def test_padding_is_masked_by_length_even_where_a_text_holds_the_pad_token(tmp_path: Path) -> None:
    trial = tiny.trial(tiny.study(tmp_path, "lora.dropout=0", family="llama"), tmp_path)
    loop = trial.make_loop()
    pad = trial.model.tokenizer.pad_token_id
    assert pad == trial.model.tokenizer.eos_token_id
    rows = {0: [10, pad, 11, pad, 12, 13], 1: [20, 21, 22, 23, 24, 25, 26, 27, 28]}
    loop.rows.tokens = lambda row: np.array(rows[row], dtype=np.int32)  # type: ignore[method-assign]
    trial.model.network.eval()
    together = loop.loss(MicroBatch((0, 1)))
    alone = [loop.loss(MicroBatch((row,))) for row in (0, 1)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.document("003", "training stops early when nothing improves", where="`train.patience`")
def test_early_stopping_ends_after_the_patience_and_keeps_the_best(tmp_path: Path) -> None:
    trial = tiny.trial(
        tiny.study(tmp_path, "train.epochs=20", "train.patience=2", "train.learning_rate=0.000001"),
        tmp_path,
    )
    result = trial.run()
    assert len(result.history) < 20
    assert [row.is_best for row in result.history][-2:] == [False, False]
    assert result.best.is_best


def test_max_steps_ends_in_the_middle_of_an_epoch_with_an_evaluation(tmp_path: Path) -> None:
    trial = tiny.trial(
        tiny.study(
            tmp_path, "train.epochs=null", "train.max_steps=7", "train.evaluate_every_steps=3"
        ),
        tmp_path,
    )
    assert [row.step for row in trial.run().history] == [3, 6, 7]


@pytest.mark.document(
    "002",
    "a checkpoint each epoch, the last three are kept",
    where="`train.keep_checkpoints`",
)
def test_only_the_best_and_the_latest_checkpoints_are_kept(tmp_path: Path) -> None:
    result = tiny.trial(
        tiny.study(tmp_path, "train.epochs=5", "train.keep_checkpoints=2"), tmp_path
    ).run()
    steps = [row.step for row in result.history]
    checkpoint_steps = sorted(
        int(path.name[5:]) for path in (tmp_path / "trial" / "checkpoints").iterdir()
    )
    assert checkpoint_steps == sorted({result.best.step, *steps[-2:]})


def test_another_seed_draws_another_order_and_another_adapter(tmp_path: Path) -> None:
    first, second = (tiny.trial(tiny.study(tmp_path, f"seed={seed}"), tmp_path) for seed in (0, 1))
    assert not same(weights_of(first), weights_of(second))
    assert first.make_loop().steps() != second.make_loop().steps()
    again = tiny.trial(tiny.study(tmp_path, "seed=1"), tmp_path)
    assert same(weights_of(again), weights_of(second))
