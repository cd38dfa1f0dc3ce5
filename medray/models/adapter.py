"""The LoRA adapter of a base model and the head beside it, written and read as a PEFT folder."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medray.config.trial import LoraConfig, ModelOptions
from medray.errors import ArtifactError
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
from medray.models.lora import quicken
from medray.models.precision import DTYPES
from medray.types import Needs

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_TASK_TYPES: dict[Needs, str] = {
    "head": "SEQ_CLS",
    "token head": "TOKEN_CLS",
    "language model": "CAUSAL_LM",
}
_PREFIX = "base_model.model."  # which PEFT puts before the names of the base model
_READ_FIELDS = (
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
_OTHER_FIELDS = {
    "peft_type",
    "peft_version",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "megatron_core",
}
# other values change the weights of the base model too
_SAFE_VALUES = {"init_lora_weights": (True, False, "gaussian", "orthogonal")}


def freeze(network: Any, model: ModelOptions) -> None:
    """Freeze a base model, and prepare it for gradient checkpointing where that is on."""
    network.requires_grad_(False)
    if model.gradient_checkpointing:
        network.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
        network.enable_input_require_grads()


def attach(network: Any, family: Family, lora: LoraConfig, needs: Needs) -> PeftModel:
    """Put a new adapter on a base model, and make the head trainable."""
    config = PeftLoraConfig(
        task_type=_TASK_TYPES[needs],
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=targets(family, network, lora),
        modules_to_save=list(family.head_modules) or None,
    )
    target_names = set(config.target_modules)
    model = adapt(network, config)
    quicken(model)
    _to_type(model, DTYPES[lora.dtype])
    # PEFT shortens a long list of targets to endings of names, which must match the same layers.
    layers = {
        name.removeprefix(_PREFIX)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert layers == target_names, f"PEFT adapts other layers: {sorted(layers ^ target_names)}"
    return model


def restore(network: Any, family: Family, folder: Path) -> PeftModel:
    """Read the adapter and head of a folder, which must have exactly their weights."""
    config = _read_config(folder)
    path = folder / WEIGHTS
    lacking = sorted(set(family.head_modules) - set(config.modules_to_save or ()))
    if lacking:
        raise ArtifactError(
            f"{folder / CONFIG}: the checkpoint has no head; modules_to_save lacks "
            f"{', '.join(lacking)}"
        )
    try:
        weights = load_file(str(path))
    except (OSError, SafetensorError) as err:
        raise ArtifactError(f"{path}: cannot be read as safetensors: {err}") from err
    try:
        model = adapt(network, config)
    except ValueError as err:
        raise ArtifactError(f"{folder / CONFIG}: does not fit the base model: {err}") from err
    quicken(model)
    _compare(path, family, state(model), weights)
    types = {tensor.dtype for name, tensor in weights.items() if ".lora_" in name}
    if len(types) == 1:
        _to_type(model, types.pop())
    result = set_peft_model_state_dict(model, weights)
    assert not result.unexpected_keys, result.unexpected_keys
    return model


def write(
    weights: dict[str, Tensor],
    config: PeftConfig,
    folder: Path,
    *,
    source: str,
    revision: str | None,
) -> None:
    """Write weights and configuration. The base model is named by its source, not by its path on
    this machine."""
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
    ):  # these are sets, and PEFT adds to the last one at every load
        settings[key] = sorted(set(settings[key])) if settings[key] else None
    (folder / CONFIG).write_text(
        json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def base_layers(model: Any) -> dict[str, LoraLayer]:
    """Return the LoRA layer of each layer that an adapter changes, by the name of that layer."""
    return {
        f"{name}.base_layer": module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def merge(layer: LoraLayer) -> None:
    """Add the adapter of one layer to its weights in place."""
    for name, parameter in layer.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()  # sums in bf16 would be rounded once more
    layer.merge(safe_merge=True)


def _read_config(folder: Path) -> PeftLoraConfig:
    """Read a plain LoRA configuration.

    Raises for fields that would change the base model or name a module to import.
    """
    path = folder / CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ArtifactError(f"{path}: cannot be read as JSON: {err}") from err
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        raise ArtifactError(f"{path}: is not the configuration of a LoRA adapter")
    defaults = PeftLoraConfig().to_dict()
    for name, value in settings.items():
        if name in _READ_FIELDS or name in _OTHER_FIELDS:
            continue
        if value and value not in _SAFE_VALUES.get(name, (defaults.get(name),)):
            raise ArtifactError(f"{path}: {name} is {value!r}, which medray does not support")
    return PeftLoraConfig(**{name: settings[name] for name in _READ_FIELDS if name in settings})


def _compare(
    path: Path, family: Family, parameters: dict[str, Tensor], weights: dict[str, Tensor]
) -> None:
    lacking = sorted(parameters.keys() - weights.keys())
    if any(
        name.removeprefix(_PREFIX).startswith(f"{head}.")
        for name in lacking
        for head in family.head_modules
    ):
        raise ArtifactError(f"{path}: the checkpoint has no head; it lacks {first_names(lacking)}")
    if lacking:
        raise ArtifactError(f"{path}: lacks {first_names(lacking)}, which {CONFIG} names")
    if weights.keys() - parameters.keys():
        raise ArtifactError(
            f"{path}: has {first_names(weights.keys() - parameters.keys())}, which do not belong "
            "to "
            "this adapter and head"
        )
    for name, tensor in parameters.items():
        if weights[name].shape != tensor.shape:
            raise ArtifactError(
                f"{path}: {name} has the shape {list(weights[name].shape)}; the model needs "
                f"{list(tensor.shape)}"
            )


def first_names(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def state(model: PeftModel) -> dict[str, Tensor]:
    """Return the weights of adapter and head."""
    # Without save_embedding_layers=False, PEFT would look for the base model's config on the Hub.
    weights: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return weights


def _to_type(model: PeftModel, dtype: torch.dtype) -> None:
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(dtype)
