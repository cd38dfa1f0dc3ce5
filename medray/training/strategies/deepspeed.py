"""DeepSpeed's ZeRO: optimizer states, gradients and weights in shards, one on each worker. The only
file that imports deepspeed.

What it is told follows from the train section: batches, clipping and the schedule are the loop's,
as with any strategy."""

import importlib.util
import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from medray.config.study import Precision, TrainConfig, TrialConfig
from medray.models.precision import dtype_name
from medray.training import distributed
from medray.training.slot import VALUE, Slot, Tensors

_MOMENTS = ("exp_avg", "exp_avg_sq")


def check(config: TrialConfig) -> list[str]:
    train, found = config.train, []
    if train.zero_stage is None:
        found.append(
            "train.zero_stage None and train.strategy deepspeed: give the stage, 0, 1, 2 or 3"
        )
    if train.offload_optimizer and not train.zero_stage:
        found.append(
            f"train.offload_optimizer True and train.zero_stage {train.zero_stage}: only stages 1 "
            "to 3 have shards to offload"
        )
    if train.zero_stage == 3 and config.model.precision == "auto":
        found.append(
            "model.precision auto and train.zero_stage 3: what is sharded is not timed on one "
            "worker; set bf16 or fp32"
        )
    return found


def lacking() -> list[str]:
    if importlib.util.find_spec("deepspeed"):
        return []
    return ["train.strategy deepspeed needs the package deepspeed: pip install 'medray[deepspeed]'"]


class Strategy:
    repeats_alone = False

    def __init__(
        self, slot: Slot, train: TrainConfig, *, precision: Precision, device: str
    ) -> None:
        self.slot, self.train, self.precision, self.device = slot, train, precision, device
        self.shards_model = train.zero_stage == 3
        self.engine: Any = None
        self.scaler: torch.amp.GradScaler | None = None

    def start(self, model: Any, stored: dict[str, Any] | None) -> Any:
        if stored:
            self.slot.restore(stored["slot"])  # before the engine copies values into its shards
        deepspeed = _import(self.device)
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=self.slot.optimizer, config=self.settings()
        )
        self._start_scaler(stored["scaler"] if stored else {})
        self._open_moments(stored["slot"]["parameters"] if stored else {})
        return self.engine

    def settings(self) -> dict[str, Any]:
        """DeepSpeed's own configuration of this trial."""
        train = self.train
        zero: dict[str, Any] = {"stage": train.zero_stage}
        if train.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self.device == "cuda"}
        settings: dict[str, Any] = {
            # a count that DeepSpeed only reports; plan() says what is in a micro-batch
            "train_micro_batch_size_per_gpu": 1,
            # how many micro-batches a step has differs; `last` says which one ends it
            "gradient_accumulation_steps": 1,
            "gradient_clipping": train.max_grad_norm or 0.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own has to be compiled
        }
        if self.precision != "fp32":
            # The engine switches the loop's autocast off unless it has its own. No module is named,
            # so that gradients travel in fp32.
            settings["torch_autocast"] = {
                "enabled": True,
                "dtype": dtype_name(self.precision),
                "lower_precision_safe_modules": [],
            }
        return settings

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        # The engine averages over workers; ours are parts of a sum.
        self.engine.backward(loss * distributed.world_size(), scale_wrt_gas=False)

    def reduce(self, numbers: Sequence[float]) -> list[float]:
        return distributed.summed([], numbers, self.device)

    def _start_scaler(self, stored: dict[str, Any]) -> None:
        """Scale the loss for fp16 as torch's GradScaler does, whose state it stores.

        DeepSpeed's own of stages 1 to 3 clips before it takes the scale out, and each worker looks
        at its shard alone (0.19). An engine gets it also where an earlier one of this process had
        fp16."""
        if self.train.zero_stage:
            self.engine.optimizer.torch_autocast_gradscaler = None
        if self.precision != "fp16":
            return
        self.scaler = torch.amp.GradScaler(self.device)
        if stored:
            self.scaler.load_state_dict(stored)
        self.scaler.scale(torch.zeros(1, device=self.device))  # makes its tensors
        if self.train.zero_stage:
            self.engine.optimizer.override_loss_scale(self.scaler.get_scale())
        else:
            self.engine.torch_autocast_z0_gradscaler = self.scaler

    def step(self) -> None:
        self.engine.step()
        if self.scaler and self.train.zero_stage:
            has_overflow = torch.tensor(
                float(self.engine.optimizer.overflow), device=self.device
            )  # then it took no step, on any worker
            torch._amp_update_scale_(
                *self.scaler._check_scale_growth_tracker("step"),
                has_overflow,
                self.scaler.get_growth_factor(),
                self.scaler.get_backoff_factor(),
                self.scaler.get_growth_interval(),
            )
            self.engine.optimizer.override_loss_scale(self.scaler.get_scale())
        self.slot.schedule.step()

    def abandon(self) -> None:
        """Before `start` the parameters are plain ones; afterwards no step is repeated."""
        self.slot.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        scaler = self.scaler.state_dict() if self.scaler else {}
        return {"slot": self.slot.state(self._parameters()), "scaler": scaler}

    def whole(self) -> AbstractContextManager[object]:
        if not self.shards_model:
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(list(self.slot.parameters.values()))

    def _parameters(self) -> Tensors:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        found: Tensors = {}
        (steps,) = {float(state["step"]) for state in self.slot.optimizer.state.values()}
        for name, parameter in self.slot.parameters.items():
            if self.train.zero_stage:
                tensors = {VALUE: safe_get_full_fp32_param(parameter)}
                tensors |= {key: safe_get_full_optimizer_state(parameter, key) for key in _MOMENTS}
            else:
                state = self.slot.optimizer.state[parameter]
                tensors = {VALUE: parameter.detach(), **{key: state[key] for key in _MOMENTS}}
            found[name] = {key: tensor.cpu() for key, tensor in tensors.items()} | {
                "step": torch.tensor(steps)
            }
        return found

    def _open_moments(self, parameters: Tensors) -> None:
        """Zeros, or what was stored. DeepSpeed makes them in the first step and then finds those of
        the first parameter group only (0.19)."""
        from deepspeed.utils import safe_set_full_optimizer_state

        steps = max(
            (float(tensors.get("step", 0.0)) for tensors in parameters.values()), default=0.0
        )
        for held in self._held():
            self.slot.optimizer.state[held] = {
                "step": torch.tensor(steps),
                **{key: torch.zeros_like(held) for key in _MOMENTS},
            }
        if self.train.zero_stage in (1, 2):
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()
        for name, tensors in parameters.items():
            parameter = self.slot.parameters[name]
            for key in tensors.keys() & set(_MOMENTS):
                if self.train.zero_stage:
                    safe_set_full_optimizer_state(parameter, tensors[key].to(self.device), key)
                else:
                    self.slot.optimizer.state[parameter][key].copy_(tensors[key])

    def _held(self) -> list[Tensor]:
        """What the optimizer updates on this worker: flat shards, or without ZeRO the parameters
        themselves."""
        if self.train.zero_stage in (1, 2):
            return list(self.engine.optimizer.single_partition_of_fp32_groups)
        return (
            list(self.engine.optimizer.fp32_partitioned_groups_flat)
            if self.train.zero_stage
            else list(self.slot.parameters.values())
        )


def _import(device: str) -> Any:
    """deepspeed, ready for this device, with a process group of this process alone where there is
    none."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # else it is guessed, with a warning
    os.environ.setdefault(
        "LOCAL_RANK", "0"
    )  # Ray Train and torchrun set it; a process of its own has none, and DeepSpeed asks for one
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    if device == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = (
            False  # it would be compiled; gloo does its work
        )
    if not dist.is_initialized():
        dist.init_process_group(
            "gloo" if device == "cpu" else "nccl", store=HashStore(), rank=0, world_size=1
        )
    return deepspeed
