"""A slot is the state of one trial: its trainable parameters, optimizer, schedule and progress."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from medray.config.trial import TrainConfig
from medray.records import Evaluation

VALUE = "value"
# per name of a parameter: its value, and the step and moments of its optimizer
Tensors = dict[str, dict[str, Tensor]]


@dataclass
class Stopper:
    """Keeps the best evaluation and decides when to stop early."""

    metric: str
    higher_is_better: bool
    patience: int | None
    best: float | None = None
    best_step: int = -1
    num_worse: int = 0

    def update(self, value: float, step: int) -> bool:
        """Count an evaluation, and return whether it is the best so far. A NaN never is."""
        better = self.best is None or (
            value > self.best if self.higher_is_better else value < self.best
        )
        if better and not math.isnan(value):
            self.best, self.best_step, self.num_worse = value, step, 0
            return True
        self.num_worse += 1
        return False

    @property
    def stop(self) -> bool:
        return self.patience is not None and self.num_worse >= self.patience


@dataclass
class Slot:
    parameters: dict[str, Parameter]
    optimizer: AdamW
    schedule: LambdaLR
    # seeds the dropout of every micro-batch together with its position, so that no state of a
    # generator is stored
    rng: int
    num_steps: int
    stopper: Stopper
    cursor: tuple[int, int] = (0, 0)  # epoch, and step within it, that come next
    step: int = 0  # steps taken
    loss_sum: float = 0.0  # over the training rows since the last evaluation
    weight_sum: float = 0.0
    num_tokens: int = 0
    seconds: float = 0.0
    history: list[Evaluation] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return self.step >= self.num_steps or self.stopper.stop

    @property
    def is_evaluated(self) -> bool:
        """Return whether the model is evaluated after its last step."""
        return bool(self.history) and self.history[-1].step == self.step

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / max(self.seconds, 1e-9)

    def state(self, parameters: Tensors) -> dict[str, Any]:
        """Return all that another process needs to resume, as tensors and plain values.

        It loads without pickle. The strategy passes whole parameters, so that another strategy or
        another number of workers can restore them."""
        return {
            "parameters": parameters,
            "schedule": {
                "last_epoch": self.schedule.last_epoch,
                "last_lr": self.schedule.get_last_lr(),
            },
            "stopper": asdict(self.stopper),
            **{name: getattr(self, name) for name in _PLAIN},
            "history": [evaluation.as_dict() for evaluation in self.history],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore all but the optimizer's moments, which the strategy restores."""
        if state["parameters"].keys() != self.parameters.keys():
            raise ValueError("the stored state belongs to a model with other trainable parameters")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["parameters"][name][VALUE])
        self.schedule.last_epoch = state["schedule"]["last_epoch"]
        self.schedule._last_lr = state["schedule"]["last_lr"]
        for members, rate in zip(
            self.optimizer.param_groups, state["schedule"]["last_lr"], strict=True
        ):
            members["lr"] = rate
        self.stopper = Stopper(**state["stopper"])
        for name in _PLAIN:
            setattr(self, name, state[name])
        self.history = [Evaluation.from_dict(values) for values in state["history"]]
        self.cursor = (int(self.cursor[0]), int(self.cursor[1]))


_PLAIN = ("cursor", "step", "loss_sum", "weight_sum", "num_tokens", "seconds")


def open_slot(
    model: Module,
    head_modules: Sequence[str],
    train: TrainConfig,
    *,
    num_steps: int,
    seed: int,
    stopper: Stopper,
) -> Slot:
    """Return a new slot for the trainable parameters of a model."""
    parameters = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    head_rate = train.head_learning_rate or train.peak_rate
    groups: dict[tuple[float, float], list[Parameter]] = {}
    for name, parameter in parameters.items():
        rate = (
            head_rate if any(f".{module}." in name for module in head_modules) else train.peak_rate
        )
        decay = train.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    optimizer = AdamW(
        [
            {"params": members, "lr": rate, "weight_decay": decay}
            for (rate, decay), members in groups.items()
        ],
        # one kernel per step; DeepSpeed has an optimizer state of its own form
        fused=(train.zero_stage is None and all(each.is_cuda for each in parameters.values()))
        or None,
    )
    schedule = LambdaLR(optimizer, lambda step: rate_factor(step, num_steps, train))
    return Slot(parameters, optimizer, schedule, rng=seed, num_steps=num_steps, stopper=stopper)


def rate_factor(step: int, num_steps: int, train: TrainConfig) -> float:
    """Return the share of the learning rate at a step, warm-up included.

    It reaches 0 only after the last step."""
    warmup = (
        train.warmup_steps
        if train.warmup_steps is not None
        else round((train.warmup_ratio or 0.0) * num_steps)
    )
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    match train.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
