"""The LoRA adapter and the head beside it: put on a base, written as an ordinary PEFT folder, read
back exactly."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medray.config.study import LoraConfig, ModelOptions
from medray.errors import ArtifactError
from medray.models.cpu.lora import quicken
from medray.models.families import Family, targets
from medray.models.libraries import (
    LoraLayer,
    PeftConfig,
    PeftLoraConfig,
    PeftModel,
    adapt,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from medray.models.precision import DTYPES
from medray.types import Needs

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_TASK_TYPES: dict[Needs, str] = {
    "head": "SEQ_CLS",
    "token head": "TOKEN_CLS",
    "language model": "CAUSAL_LM",
}
_PREFIX = "base_model.model."  # PEFT's, before the names that the base has
_LOADED = (
    *(
        "r",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "use_dora",
        "target_modules",
        "exclude_modules",
        "modules_to_save",
    ),
    *(
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "fan_in_fan_out",
        "bias",
        "lora_bias",
        "task_type",
    ),
)
_IGNORED = {
    "peft_type",
    "peft_version",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "megatron_core",
}
_ALLOWED = {
    "init_lora_weights": (True, False, "gaussian", "orthogonal")
}  # others change the base's weights as well


def freeze(network: Any, model: ModelOptions) -> None:
    """Make nothing of a base train, and prepare it for checkpointing where that is requested."""
    network.requires_grad_(False)
    if model.gradient_checkpointing:
        network.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
        network.enable_input_require_grads()


def attach(network: Any, family: Family, lora: LoraConfig, needs: Needs) -> PeftModel:
    """Put a fresh adapter on a base, and make the head trainable."""
    config = PeftLoraConfig(
        task_type=_TASK_TYPES[needs],
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=targets(family, network, lora),
        modules_to_save=list(family.head_modules) or None,
    )
    wanted = set(config.target_modules)
    adapted = adapt(network, config)
    quicken(adapted)
    _to_type(adapted, DTYPES[lora.dtype])
    # PEFT shortens a long list of targets to endings that mean the same; that they do is checked,
    # not believed.
    layers = {
        name.removeprefix(_PREFIX)
        for name, module in adapted.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert layers == wanted, f"adapted are {sorted(layers ^ wanted)} more or less than requested"
    return adapted


def restore(network: Any, family: Family, folder: Path) -> PeftModel:
    """The adapter and head of a folder; every weight they need is in it, and nothing else is."""
    config = _read_config(folder)
    path = folder / WEIGHTS
    lacking = sorted(set(family.head_modules) - set(config.modules_to_save or ()))
    if lacking:
        raise ArtifactError(
            f"{folder / CONFIG}: the head is not in the checkpoint: modules_to_save lacks "
            f"{', '.join(lacking)}"
        )
    try:
        saved = load_file(str(path))
    except (OSError, SafetensorError) as err:
        raise ArtifactError(f"{path}: cannot be read as safetensors: {err}") from err
    try:
        adapted = adapt(network, config)
    except ValueError as err:
        raise ArtifactError(f"{folder / CONFIG}: does not fit the base: {err}") from err
    quicken(adapted)
    _compare(path, family, state(adapted), saved)
    types = {tensor.dtype for name, tensor in saved.items() if ".lora_" in name}
    if len(types) == 1:
        _to_type(adapted, types.pop())
    result = set_peft_model_state_dict(adapted, saved)
    assert not result.unexpected_keys, result.unexpected_keys
    return adapted


def write(
    weights: dict[str, Tensor],
    config: PeftConfig,
    folder: Path,
    *,
    source: str,
    revision: str | None,
) -> None:
    """Weights and configuration; the base is named by its source, not by the place it has on this
    machine."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(plain, str(folder / WEIGHTS), metadata={"format": "pt"})
    settings = config.to_dict() | {
        "base_model_name_or_path": source,
        "revision": revision,
        "inference_mode": True,
    }
    for key in (
        "target_modules",
        "exclude_modules",
        "modules_to_save",
    ):  # sets, and PEFT adds to the last at every load
        settings[key] = sorted(set(settings[key])) if settings[key] else None
    (folder / CONFIG).write_text(
        json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def merge(adapted: PeftModel) -> Any:
    """The base with the adapter added to its weights, in place."""
    _to_type(adapted, torch.float32)  # sums in bf16 would be rounded once more
    return adapted.merge_and_unload(safe_merge=True)


def _read_config(folder: Path) -> PeftLoraConfig:
    """A plain LoRA configuration. Fields that would change the base, or name a module to import,
    are refused."""
    path = folder / CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ArtifactError(f"{path}: cannot be read as JSON: {err}") from err
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        raise ArtifactError(f"{path}: is not the configuration of a LoRA adapter")
    defaults = PeftLoraConfig().to_dict()
    for name, value in settings.items():
        if name in _LOADED or name in _IGNORED:
            continue
        if value and value not in _ALLOWED.get(name, (defaults.get(name),)):
            raise ArtifactError(f"{path}: {name} is {value!r}, which medray does not load")
    return PeftLoraConfig(**{name: settings[name] for name in _LOADED if name in settings})


def _compare(
    path: Path, family: Family, wanted: dict[str, Tensor], saved: dict[str, Tensor]
) -> None:
    lacking = sorted(wanted.keys() - saved.keys())
    if any(
        name.removeprefix(_PREFIX).startswith(f"{head}.")
        for name in lacking
        for head in family.head_modules
    ):
        raise ArtifactError(
            f"{path}: the head is not in the checkpoint: it lacks {first_names(lacking)}"
        )
    if lacking:
        raise ArtifactError(f"{path}: lacks {first_names(lacking)}, which {CONFIG} says there are")
    if saved.keys() - wanted.keys():
        raise ArtifactError(
            f"{path}: holds {first_names(saved.keys() - wanted.keys())}, which are not of this "
            "adapter and head"
        )
    for name, tensor in wanted.items():
        if saved[name].shape != tensor.shape:
            raise ArtifactError(
                f"{path}: {name} has the shape {list(saved[name].shape)}, needed is "
                f"{list(tensor.shape)}"
            )


def first_names(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def state(adapted: PeftModel) -> dict[str, Tensor]:
    """Adapter and head. Asking PEFT whether embeddings changed would make it look for the base's
    config on the Hub."""
    weights: dict[str, Tensor] = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return weights


def _to_type(adapted: PeftModel, dtype: torch.dtype) -> None:
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(dtype)
