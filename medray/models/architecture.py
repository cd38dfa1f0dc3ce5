"""The architecture of a base model by its config.json alone: no weight is read. Some configurations
are known without their files."""

import json
from pathlib import Path
from typing import Any

import torch

from medray.config.study import LoraConfig
from medray.errors import ArtifactError, ConfigError, suggest
from medray.models import sources
from medray.models.families import ENCODERS, Family, family_of, targets
from medray.models.libraries import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from medray.types import Head, Needs

_PUBLISHED = Path(__file__).with_name("architectures.json")
KINDS = {
    "head": AutoModelForSequenceClassification,
    "token head": AutoModelForTokenClassification,
    "language model": AutoModelForCausalLM,
}


def needs_of(head: Head | None) -> Needs:
    """The kind of model that a head makes of a base."""
    if head is None:
        return "language model"
    return "token head" if head.per_token else "head"


def load_config(folder: Path, source: str) -> Any:
    """The configuration in a folder; errors name `source`."""
    try:
        config = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as err:
        raise ArtifactError(
            f"{source}: its config.json is none that transformers loads, at least not without "
            f"foreign code: {first_line(err)}"
        ) from err
    stored = getattr(config, "quantization_config", None)
    if stored:
        method = (
            stored.get("quant_method", "unknown")
            if isinstance(stored, dict)
            else type(stored).__name__
        )
        raise ArtifactError(
            f"{source}: its weights are stored quantised ({method}); allowed: the model in full "
            "precision, in 4 bits by model.quantization: nf4"
        )
    return config


def find(source: str, revision: str | None) -> tuple[Any, str]:
    """The configuration of a base, by its config.json or its published sizes, and a note in the
    second case."""
    try:
        return load_config(sources.config_dir(source, revision), source), ""
    except ArtifactError as err:
        published = json.loads(_PUBLISHED.read_text(encoding="utf-8"))
        if source in published:
            return AutoConfig.for_model(
                **published[source]
            ), "by its published sizes: its config.json is not here"
        raise ArtifactError(
            f"{err}; planning needs its config.json alone: a folder with it can be the source, "
            f"and these are known without: {suggest(source, published)}"
        ) from None


def without_dropout(config: Any, dropout: float) -> Any:
    """The configuration with this dropout wherever it has one."""
    for name, value in config.to_dict().items():
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and ("dropout" in name or name.endswith(("_drop", "_pdrop")))
        ):
            setattr(config, name, dropout)
    return config


def outline(config_dir: Path, needs: Needs = "head") -> tuple[Any, Family]:
    """The network of a folder's config.json without a weight, and its family."""
    config = load_config(config_dir, str(config_dir))
    network = outline_of(config, str(config_dir), needs)
    return network, family_of(network, config.model_type)


def outline_of(config: Any, where: str, needs: Needs) -> Any:
    """A network of this configuration without a weight; errors name `where`."""
    with torch.device("meta"):
        try:
            network = KINDS[needs].from_config(config, trust_remote_code=False)
        except ValueError as err:
            raise ConfigError(
                f"{where}: model type {config.model_type!r} has no {needs} in transformers"
            ) from err
    if (
        needs == "language model"
        and not getattr(config, "is_decoder", False)
        and config.model_type in ENCODERS
    ):
        raise ConfigError(
            f"{where}: model type {config.model_type!r} is an encoder: this task needs a causal "
            "language model"
        )
    return network


def check_targets(config_dir: Path, lora: LoraConfig, needs: Needs = "head") -> list[str]:
    """Full names of the layers that LoRA would adapt; raises what is wrong with them."""
    network, family = outline(config_dir, needs)
    return targets(family, network, lora)


def num_adapter_weights(config_dir: Path, lora: LoraConfig, needs: Needs = "head") -> int:
    """The number of weights that train and are stored: two thin matrices per adapted layer, and the
    head where there is one."""
    network, family = outline(config_dir, needs)
    modules = dict(network.named_modules())
    adapted = sum(
        lora.r * (modules[name].in_features + modules[name].out_features)
        for name in targets(family, network, lora)
    )
    heads = [
        modules[name]
        for name in (*family.head_modules, *family.optional_modules)
        if name in modules
    ]
    return adapted + sum(weight.numel() for head in heads for weight in head.parameters())


def first_line(err: Exception) -> str:
    return (str(err).strip() or type(err).__name__).splitlines()[0][:300]
