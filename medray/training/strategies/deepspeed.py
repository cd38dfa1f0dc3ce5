"""DeepSpeed's ZeRO: optimizer states, gradients and weights in shards, one per worker.

The only file that imports deepspeed. Its settings follow from the train section; batches and the
schedule belong to the loop, as with any strategy."""

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

from medray.config.trial import Precision, TrainConfig, TrialConfig
from medray.models.precision import dtype_name
from medray.tasks.base.protocol import needs_of
from medray.training import distributed
from medray.training.slot import VALUE, Slot, Tensors

_MOMENTS = ("exp_avg", "exp_avg_sq")


def check(config: TrialConfig) -> list[str]:
    train, errors = config.train, []
    has_head = needs_of(config.task) != "language model"
    if train.zero_stage is None:
        errors.append(
            "train.zero_stage None and train.strategy deepspeed: set the stage to 0, 1, 2 or 3"
        )
    if train.offload_optimizer and not train.zero_stage:
        errors.append(
            f"train.offload_optimizer True and train.zero_stage {train.zero_stage}: only stages 1 "
            "to 3 have shards to offload"
        )
    if train.zero_stage == 3 and config.model.precision == "auto":
        errors.append(
            "model.precision auto and train.zero_stage 3: a model in shards cannot be timed on one "
            "worker; set bf16 or fp32"
        )
    if train.zero_stage == 3 and config.lora.dtype == "bf16" and has_head:
        errors.append(
            "lora.dtype bf16 and train.zero_stage 3: DeepSpeed shards trained weights of one type, "
            "and the head is in fp32; set lora.dtype: fp32"
        )
    return errors


def lacking() -> list[str]:
    if importlib.util.find_spec("deepspeed"):
        return []
    return ["train.strategy deepspeed needs the package deepspeed: pip install 'medray[deepspeed]'"]


class Strategy:
    is_reusable = False
    repeats_alone = False

    def __init__(
        self, slot: Slot, train: TrainConfig, *, precision: Precision, device: str
    ) -> None:
        self.slot, self.train, self.precision, self.device = slot, train, precision, device
        self.shards_model = train.zero_stage == 3
        # counted before the weights are sharded
        self.num_trainable = sum(parameter.numel() for parameter in slot.parameters.values())
        self.engine: Any = None
        self.scaler: torch.amp.GradScaler | None = None

    def start(self, model: Any, state: dict[str, Any] | None) -> Any:
        if state:
            self.slot.restore(state["slot"])  # before the engine copies values into its shards
        deepspeed, settings = _import(self.device), self.settings()
        if self.shards_model:
            _shard(deepspeed, model, settings, self.device)
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=self.slot.optimizer, config=settings
        )
        self._start_scaler(state["scaler"] if state else {})
        self._restore_moments(state["slot"]["parameters"] if state else {})
        return self.engine

    def settings(self) -> dict[str, Any]:
        """Return DeepSpeed's configuration for this trial."""
        train = self.train
        zero: dict[str, Any] = {
            "stage": train.zero_stage,
            # DeepSpeed allocates 2 GB otherwise, for adapters of a few megabytes
            "reduce_bucket_size": self.num_trainable,
        }
        if train.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self.device == "cuda"}
        settings: dict[str, Any] = {
            # DeepSpeed only reports this number; plan() cuts the micro-batches
            "train_micro_batch_size_per_gpu": 1,
            # the number of micro-batches per step varies; `last` ends a step
            "gradient_accumulation_steps": 1,
            "gradient_clipping": train.max_grad_norm or 0.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own optimizer must be compiled
        }
        if self.precision != "fp32":
            # The engine switches the loop's autocast off unless it has its own. The empty list of
            # modules keeps gradients in fp32 between workers.
            settings["torch_autocast"] = {
                "enabled": True,
                "dtype": dtype_name(self.precision),
                "lower_precision_safe_modules": [],
            }
        return settings

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        # The engine averages over workers, while these losses are parts of a sum.
        self.engine.backward(loss * distributed.world_size(), scale_wrt_gas=False)

    def reduce(self, numbers: Sequence[float]) -> list[float]:
        return distributed.add_up([], numbers, self.device)

    def _start_scaler(self, state: dict[str, Any]) -> None:
        """Scale the loss for fp16 with torch's GradScaler, whose state is stored.

        In stages 1 to 3, DeepSpeed's own scaler clips before it removes the scale, and each worker
        checks its own shard only (0.19). An engine has that scaler even without fp16 where an
        earlier engine of this process used fp16."""
        if self.train.zero_stage:
            self.engine.optimizer.torch_autocast_gradscaler = None
        if self.precision != "fp16":
            return
        self.scaler = torch.amp.GradScaler(self.device)
        if state:
            self.scaler.load_state_dict(state)
        self.scaler.scale(torch.zeros(1, device=self.device))  # creates its tensors
        if self.train.zero_stage:
            self.engine.optimizer.override_loss_scale(self.scaler.get_scale())
        else:
            self.engine.torch_autocast_z0_gradscaler = self.scaler

    def step(self) -> None:
        self.engine.step()
        if self.scaler and self.train.zero_stage:
            has_overflow = torch.tensor(
                float(self.engine.optimizer.overflow), device=self.device
            )  # an overflow skips the step on all workers
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
        """Clear plain gradients, before `start`; afterwards no step is repeated."""
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

        parameters: Tensors = {}
        (steps,) = {float(state["step"]) for state in self.slot.optimizer.state.values()}
        for name, parameter in self.slot.parameters.items():
            if self.train.zero_stage:
                tensors = {VALUE: safe_get_full_fp32_param(parameter)}
                tensors |= {key: safe_get_full_optimizer_state(parameter, key) for key in _MOMENTS}
            else:
                state = self.slot.optimizer.state[parameter]
                tensors = {VALUE: parameter.detach(), **{key: state[key] for key in _MOMENTS}}
            parameters[name] = {key: tensor.cpu() for key, tensor in tensors.items()} | {
                "step": torch.tensor(steps)
            }
        return parameters

    def _restore_moments(self, parameters: Tensors) -> None:
        """Set the optimizer's moments to the stored values, or to zeros.

        DeepSpeed creates them in the first step, and then finds those of the first parameter group
        only (0.19)."""
        from deepspeed.utils import safe_set_full_optimizer_state

        steps = max(
            (float(tensors.get("step", 0.0)) for tensors in parameters.values()), default=0.0
        )
        for tensor in self._optimizer_tensors():
            self.slot.optimizer.state[tensor] = {
                "step": torch.tensor(steps),
                **{key: torch.zeros_like(tensor) for key in _MOMENTS},
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

    def _optimizer_tensors(self) -> list[Tensor]:
        """Return the tensors that the optimizer updates on this worker: flat shards, or without
        ZeRO the parameters."""
        if self.train.zero_stage in (1, 2):
            return list(self.engine.optimizer.single_partition_of_fp32_groups)
        return (
            list(self.engine.optimizer.fp32_partitioned_groups_flat)
            if self.train.zero_stage
            else list(self.slot.parameters.values())
        )


def _shard(deepspeed: Any, model: Any, settings: dict[str, Any], device: str) -> None:
    """Move one weight after another to the device and keep this worker's shard of it.

    `initialize` would first move all of them (0.19). It leaves a model in shards where it is, so
    buffers and the scales of 4-bit weights are moved here."""
    deepspeed.zero.Init(module=model, config_dict_or_path=settings)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    for parameter in model.parameters():
        if scales := getattr(parameter, "quant_state", None):
            scales.to(device)


def _import(device: str) -> Any:
    """Import deepspeed for a device, and start a process group of this process alone where there is
    none."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # otherwise DeepSpeed guesses it, with a warning
    # Ray Train and torchrun set it; a single process has none, and DeepSpeed requires one
    os.environ.setdefault("LOCAL_RANK", "0")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    if device == "cpu":
        # it would be compiled; gloo does its work
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        dist.init_process_group(
            "gloo" if device == "cpu" else "nccl", store=HashStore(), rank=0, world_size=1
        )
    return deepspeed
