"""Plain PyTorch: any number of slots on one frozen base, on one worker or several, whose gradients are added up once a step."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from medray.config import TrainConfig
from medray.training import group
from medray.training.slot import Slot


class Strategy:
    max_slots: int | None = None

    def __init__(self, slots: Sequence[Slot], train: TrainConfig, *, precision: str, device: str) -> None:
        self.slots = slots
        self.max_grad_norm = train.max_grad_norm
        self.scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.scaler.scale(loss).backward()

    def reduce(self, slot: Slot, loss: float) -> float:
        return group.summed([parameter.grad for parameter in slot.parameters.values() if parameter.grad is not None], loss)

    def step(self, slot: Slot) -> None:
        self.scaler.unscale_(slot.optimizer)
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(slot.parameters.values(), self.max_grad_norm)
        self.scaler.step(slot.optimizer)
        self.scaler.update()
        slot.schedule.step()
        slot.optimizer.zero_grad(set_to_none=True)

    def abandon(self, slot: Slot) -> None:
        slot.optimizer.zero_grad(set_to_none=True)

    def save(self, folder: Path) -> None:
        states = {slot.adapter: slot.state() for slot in self.slots}
        torch.save({"slots": states, "scaler": self.scaler.state_dict()}, folder / "state.pt")

    def restore(self, folder: Path) -> None:
        stored = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        for slot in self.slots:
            slot.restore(stored["slots"][slot.adapter])
        self.scaler.load_state_dict(stored["scaler"])
