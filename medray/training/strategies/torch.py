"""Plain PyTorch on one or several workers, whose gradients are added up once per step."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from medray.config.trial import Precision, TrainConfig, TrialConfig
from medray.training import distributed
from medray.training.slot import VALUE, Slot, Tensors


def check(config: TrialConfig) -> list[str]:
    train = config.train
    if train.zero_stage is None and not train.offload_optimizer:
        return []
    return [
        f"train.zero_stage {train.zero_stage}, train.offload_optimizer {train.offload_optimizer} "
        "and train.strategy torch: sharding needs train.strategy deepspeed"
    ]


def lacking() -> list[str]:
    return []


class Strategy:
    is_reusable = True
    shards_model = False
    repeats_alone = True

    def __init__(
        self, slot: Slot, train: TrainConfig, *, precision: Precision, device: str
    ) -> None:
        self.slot, self.device = slot, device
        self.max_grad_norm = train.max_grad_norm
        self.scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")

    def start(self, model: Any, state: dict[str, Any] | None) -> Any:
        if state:
            self.slot.restore(state["slot"])
            _restore_moments(self.slot, state["slot"]["parameters"])
            self.scaler.load_state_dict(state["scaler"])
        return model

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.scaler.scale(loss).backward()

    def reduce(self, numbers: Sequence[float]) -> list[float]:
        gradients = [
            parameter.grad
            for parameter in self.slot.parameters.values()
            if parameter.grad is not None
        ]
        return distributed.add_up(gradients, numbers, self.device)

    def step(self) -> None:
        slot = self.slot
        self.scaler.unscale_(slot.optimizer)
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(slot.parameters.values(), self.max_grad_norm)
        self.scaler.step(slot.optimizer)
        self.scaler.update()
        slot.schedule.step()
        slot.optimizer.zero_grad(set_to_none=True)

    def abandon(self) -> None:
        self.slot.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        return {"slot": self.slot.state(_parameters(self.slot)), "scaler": self.scaler.state_dict()}

    def whole(self) -> AbstractContextManager[object]:
        return nullcontext()


def _parameters(slot: Slot) -> Tensors:
    return {
        name: {
            VALUE: parameter.detach().cpu(),
            **{key: moment.cpu() for key, moment in slot.optimizer.state[parameter].items()},
        }
        for name, parameter in slot.parameters.items()
    }


def _restore_moments(slot: Slot, parameters: Tensors) -> None:
    for name, parameter in slot.parameters.items():
        moments = {key: moment for key, moment in parameters[name].items() if key != VALUE}
        # the fused optimizer counts its steps on the device
        step_device = parameter.device if slot.optimizer.defaults["fused"] else "cpu"
        slot.optimizer.state[parameter] = {
            key: moment.to(step_device if moment.ndim == 0 else parameter, copy=True)
            for key, moment in moments.items()
        }
