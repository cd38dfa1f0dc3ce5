"""The training loop over the rows of a slot. It knows no task by name, no disk and no Ray."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medray.config.trial import Precision, TrainConfig
from medray.data.prepared import EncodedSplit
from medray.engines.scoring import branch_scores, head_scores
from medray.errors import TrialError
from medray.models.batch import answer_places, collate, logits_at
from medray.models.device import fast_products, free_memory, is_out_of_memory
from medray.models.families import Side
from medray.models.precision import arithmetic, fast_precision
from medray.records import Evaluation
from medray.tasks.base.branches import BranchLoss, BranchRow, HeadBranchLoss
from medray.tasks.base.language_model import AnswerLogits, LanguageModelLoss
from medray.tasks.base.protocol import Loss, LossInputs
from medray.training.plan import MicroBatch, Step, plan
from medray.training.slot import Slot
from medray.training.strategies.base import Strategy

log = logging.getLogger(__name__)


class TrialInterrupt(Exception):
    """Stops a trial after a step, once its state is stored; another process can resume it."""


@dataclass
class Loop:
    model: Any  # transformers' or PEFT's
    rows: EncodedSplit
    row_loss: Loss
    slot: Slot
    strategy: Strategy
    train: TrainConfig
    pad_id: int
    precision: Precision
    device: str
    evaluate: Callable[[bool], dict[str, float]]  # early or whole
    report: Callable[[Evaluation], None]
    store_state: Callable[[], None]
    on_step: Callable[[float], None] = lambda loss: None
    # checked on every worker; a request to one of them stops all
    is_interrupted: Callable[[], bool] = lambda: False
    early_rungs: Sequence[float] = ()  # parts of the first epoch after which it evaluates early
    padding_side: Side = "right"
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        self.token_budget = self.train.token_budget
        self.first_step_at: float | None = None  # Unix time
        # the plan of the current epoch, by epoch and token budget
        self._plans: dict[tuple[int, int], list[Step]] = {}

    def run(self) -> None:
        """Take steps and evaluate until the trial ends."""
        while not self.slot.is_done or self._lacks_evaluation():
            if self._lacks_evaluation():
                self._evaluate()
            else:
                self.advance()

    def advance(self) -> None:
        """Take the next step, and store the state where it is due."""
        slot = self.slot
        epoch, at = slot.cursor
        start = time.perf_counter()
        loss, step, is_interrupted = self.take_step()
        slot.seconds += time.perf_counter() - start
        slot.loss_sum += loss * step.weight
        slot.weight_sum += step.weight
        slot.num_tokens += int(self.rows.lengths[step.rows].sum())
        slot.step += 1
        self.first_step_at = self.first_step_at or time.time()
        self.on_step(loss)
        epoch_ends = at + 1 == len(self.steps())
        slot.cursor = (epoch + 1, 0) if epoch_ends else (epoch, at + 1)
        if slot.step % self.train.log_every_steps == 0:
            log.info(
                "epoch %d step %d/%d loss %.4f rate %.2e",
                epoch + 1,
                slot.step,
                slot.num_steps,
                loss,
                slot.schedule.get_last_lr()[0],
            )
        every = self.train.state_every_steps
        if self._lacks_evaluation() or is_interrupted or (every and slot.step % every == 0):
            # Before an evaluation too, which may take longer than the training before it.
            self.store_state()
        if is_interrupted:
            raise TrialInterrupt(f"interrupted after step {slot.step} of {slot.num_steps}")

    def _lacks_evaluation(self) -> bool:
        """Return whether an evaluation is due after the last step and still missing."""
        slot = self.slot
        every = self.train.evaluate_every_steps
        is_due = slot.step % every == 0 if every else slot.cursor[1] == 0 or self._is_early()
        return slot.step > 0 and (is_due or slot.step == slot.num_steps) and not slot.is_evaluated

    def _is_early(self) -> bool:
        """Return whether the trial has reached a rung inside its first epoch."""
        slot = self.slot
        epoch, at = slot.cursor
        if epoch or self.train.evaluate_every_steps or slot.step == slot.num_steps:
            return False
        return at in {math.ceil(rung * len(self.steps()) - 1e-9) for rung in self.early_rungs}

    def _evaluate(self) -> None:
        slot = self.slot
        is_early = self._is_early()
        metrics = self.evaluate(is_early)
        is_best = not is_early and slot.stopper.update(metrics[slot.stopper.metric], slot.step)
        at_epoch, at_step = slot.cursor
        evaluation = Evaluation(
            epoch=at_epoch + bool(at_step),
            step=slot.step,
            train_loss=slot.loss_sum / slot.weight_sum,
            metrics=metrics,
            is_best=is_best,
            epochs=at_epoch + (at_step / len(self.steps()) if at_step else 0.0),
            is_last=slot.is_done,
            seconds=slot.seconds,
            tokens_per_s=slot.tokens_per_s,
            is_early=is_early,
        )
        slot.loss_sum = slot.weight_sum = 0.0
        slot.history.append(evaluation)
        self.report(evaluation)
        self.store_state()

    def steps(self) -> list[Step]:
        """Return the steps of the current epoch."""
        slot = self.slot
        # The budget only cuts micro-batches. The steps of an epoch are the same for every budget,
        # so a new plan may start mid-epoch.
        key = (slot.cursor[0], self.token_budget)
        if key not in self._plans:
            steps = plan(
                self.rows.lengths,
                self.row_loss.weights,
                token_budget=self.token_budget,
                samples_per_step=self.train.samples_per_step,
                world_size=self.world_size,
                seed=slot.rng,
                epoch=slot.cursor[0],
            )
            self._plans = {key: steps}
        return self._plans[key]

    def take_step(self) -> tuple[float, Step, bool]:
        """Take a step, and return its loss, the step, and whether any worker has an interrupt.

        All workers learn about an interrupt in the same step."""
        slot = self.slot
        while True:
            step = self.steps()[slot.cursor[1]]
            batches = step.ranks[self.rank]
            loss: float | None
            try:
                loss = self.accumulate(step, batches)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as err:
                if not is_out_of_memory(err):
                    raise
                self._check_repeats(batches, err)
                loss = None
            if loss is None:  # only now, without the error, are the activations of the step free
                self._halve_budget(batches)
                continue
            loss, num_interrupted = self.strategy.reduce((loss, float(self.is_interrupted())))
            if not math.isfinite(loss):
                raise TrialError(
                    f"the loss is {loss} at step {slot.step + 1} (epoch {slot.cursor[0] + 1}); "
                    f"lower train.learning_rate{self._wider()}"
                )
            self.strategy.step()
            return loss, step, num_interrupted > 0

    def accumulate(self, step: Step, batches: Sequence[MicroBatch]) -> float:
        """Return the loss of a step, and leave its gradients, divided by the step's weight, on the
        parameters."""
        self.model.train()
        parts = []
        with fast_products(self.precision, self.device):
            for index, batch in enumerate(batches):
                torch.manual_seed(_seed(self.slot.rng, *self.slot.cursor, index, self.rank))
                with arithmetic(self.precision, self.device):
                    sums = self.loss(batch)
                part = sums.sum() * (0.0 if batch.fill else 1.0) / step.weight
                self.strategy.backward(part, last=index == len(batches) - 1)
                parts.append(part.detach())
        return sum(torch.stack(parts).cpu().tolist(), 0.0)  # a GPU is waited for once per step

    def loss(self, batch: MicroBatch) -> Tensor:
        """Return the weighted loss of each row."""
        inputs = collate(
            [self.rows.tokens(row) for row in batch.rows], self.pad_id, side=self.padding_side
        )
        device_inputs = {
            name: tensor.to(self.device, non_blocking=True) for name, tensor in inputs.items()
        }
        weights = (
            torch.from_numpy(self.row_loss.weights[list(batch.rows)])
            .float()
            .to(self.device, non_blocking=True)
        )
        loss_inputs = LossInputs(
            [self.rows.target(row) for row in batch.rows], weights, device_inputs["attention_mask"]
        )
        if isinstance(self.row_loss, BranchLoss):
            layouts = [
                BranchRow.parse(self.rows.tokens(row).tolist(), self.rows.target(row))
                for row in batch.rows
            ]
            prompts, branches = zip(*((row.prompt, row.branches) for row in layouts), strict=True)
            method = head_scores if isinstance(self.row_loss, HeadBranchLoss) else branch_scores
            scores = method(self.model, prompts, branches, self.pad_id)
            return self.row_loss(scores, loss_inputs)
        if not isinstance(self.row_loss, LanguageModelLoss):
            return self.row_loss(self.model(**device_inputs), loss_inputs)
        lengths = [int(self.rows.lengths[row]) for row in batch.rows]
        answers = [
            self.row_loss.spans(target, length)
            for target, length in zip(loss_inputs.targets, lengths, strict=True)
        ]
        rows, places = answer_places(
            lengths, answers, inputs["input_ids"].shape[1], left=self.padding_side == "left"
        )
        tokens = inputs["input_ids"][rows, [place + 1 for place in places]].to(self.device)
        logits = logits_at(self.model, device_inputs, rows, places)
        return self.row_loss(
            AnswerLogits(logits, torch.tensor(rows, device=self.device), tokens), loss_inputs
        )

    def _wider(self) -> str:
        """Return the advice to use a precision with a wider range, where there is one."""
        if self.precision != "fp16":
            return "" if self.precision == "fp32" else ", or set model.precision: fp32"
        wider = "bf16" if self.device == "cuda" and fast_precision("cuda") == "bf16" else "fp32"
        return f", or set model.precision: {wider}"

    def _check_repeats(self, batches: Sequence[MicroBatch], err: BaseException) -> None:
        """Raise where a step that ran out of memory cannot be repeated with less."""
        if not self.strategy.repeats_alone:
            raise TrialError(
                f"out of memory, and strategy {self.train.strategy} cannot repeat a step; "
                f"change {_ADVICE}"
            ) from err
        if all(len(batch.rows) == 1 for batch in batches):
            raise TrialError(
                f"out of memory with one row of {max(self.rows.lengths)} tokens; change {_ADVICE}"
            ) from err

    def _halve_budget(self, batches: Sequence[MicroBatch]) -> None:
        self.strategy.abandon()
        free_memory()
        if self.token_budget == self.train.token_budget:
            log.warning(
                "out of memory: the step is repeated with half the token budget and the same "
                "result; "
                "to need less memory from the start, change %s",
                _ADVICE,
            )
        longest = max(
            len(batch.rows) * max(int(self.rows.lengths[row]) for row in batch.rows)
            for batch in batches
        )
        self.token_budget = max(1, min(self.token_budget, longest) // 2)
        log.info("token budget is now %d", self.token_budget)


_ADVICE = (
    "train.token_budget, task.max_length, model.gradient_checkpointing (true) or model.precision "
    "(bf16)"
)


def _seed(*parts: int) -> int:
    """Return a seed per micro-batch of a trial, which is the same in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
