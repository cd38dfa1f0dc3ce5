"""The memory of a worker, and the settings with which one would fit. No weight is read."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from medray.config.trial import TrialConfig
from medray.models import architecture
from medray.models.device import simulated_device
from medray.models.footprint import Batch, Footprint, measure
from medray.models.frozen_weights import stored_type
from medray.models.precision import default_precision
from medray.study.workload import Workload
from medray.tasks.base.protocol import needs_of

GATHER_LIMIT = 1_000_000_000  # numbers: DeepSpeed's stage3_max_live_parameters
PROCESS = 600_000_000  # bytes of a worker without a model: libraries, or the GPU's context


def footprint(trial: TrialConfig, *, length: int, num_labels: int, answer_tokens: int) -> Footprint:
    """Return the memory of one worker without sharding."""
    config, _ = architecture.find(trial.model.source, trial.model.revision)
    return step_footprint(config, trial, length, num_labels, answer_tokens)


def step_footprint(
    config: Any,
    trial: TrialConfig,
    length: int,
    num_labels: int,
    answer_tokens: int,
    least_rows: int = 1,
    *,
    is_on_gpu: bool = False,
) -> Footprint:
    num_rows = max(least_rows, trial.train.token_budget // length)
    batch = Batch(num_rows, length, num_labels, answer_tokens)
    # A GPU chooses 16 bits for `auto`. A CPU may choose fp32, which takes more memory.
    is_half = is_on_gpu and trial.model.precision == "auto"
    precision = "bf16" if is_half else default_precision(trial.model.precision)
    return measure(
        config,
        trial.model,
        trial.lora,
        batch,
        needs=needs_of(trial.task),
        precision=precision,
        device=simulated_device(is_on_gpu),
        frozen_type=stored_type(config, precision) if is_on_gpu else None,
    )


def sharded_bytes(whole: Footprint, zero_stage: int | None, num_workers: int) -> int:
    """Return the bytes per worker when the workers share optimizer state, gradients or weights.
    To share, they send gradients through a buffer of the same size, and gather weights."""
    if not zero_stage:
        return whole.peak
    common = whole.moments + (whole.gradients if zero_stage >= 2 else 0)
    common += whole.weights if zero_stage == 3 else 0
    gather = _gather_bytes(whole) if zero_stage == 3 else 0
    return whole.peak + whole.gradients + gather - common + math.ceil(common / num_workers)


def _gather_bytes(whole: Footprint) -> int:
    """Return the most bytes of weights that ZeRO-3 has gathered at a time."""
    number_bytes = max(1.0, whole.weights / whole.num_parameters)  # two in 4 bits share one
    return min(whole.weights, int(GATHER_LIMIT * number_bytes))


def advice(
    config: Any,
    trial: TrialConfig,
    rows: Workload,
    workers: int,
    room: int,
    is_on_gpu: bool,
) -> str:
    """Return the fastest settings that fit, as a sentence."""
    for settings in _smaller(trial, rows, workers):
        model = trial.model.model_copy(update=_section(settings, "model."))
        train = trial.train.model_copy(update=_section(settings, "train."))
        memory = step_footprint(
            config,
            trial.model_copy(update={"model": model, "train": train}),
            rows.longest,
            rows.num_labels,
            rows.answer_tokens,
            rows.least_rows,
            is_on_gpu=is_on_gpu,
        )
        if (
            PROCESS
            + sharded_bytes(
                memory, train.zero_stage, int(settings.get("resources.num_workers", workers))
            )
            <= room
        ):
            return "fits with " + " ".join(
                f"{key}={str(value).lower()}" for key, value in settings.items()
            )
    return (
        "does not fit even with one row per step, gradient checkpointing, 4 bits or eight workers "
        "that share the weights; lower task.max_length"
    )


def _section(settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)
    }


def _smaller(trial: TrialConfig, rows: Workload, workers: int) -> Iterator[dict[str, Any]]:
    one_row = {"train.token_budget": rows.longest}
    yield one_row
    again = one_row | {"model.gradient_checkpointing": True}
    yield again
    if trial.train.zero_stage != 3 and trial.model.quantization == "none":
        yield again | {"model.quantization": "nf4"}
    for number in (2, 4, 8):
        if number > workers:
            yield again | {
                "train.strategy": "deepspeed",
                "train.zero_stage": 3,
                "resources.num_workers": number,
            }
