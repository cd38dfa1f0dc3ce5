"""The architecture of a base model, from its config.json alone: no weight is read.

The configurations of some models are in architectures.json."""

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, get_layer_types_and_kwargs

from medray.config.trial import LoraConfig
from medray.errors import ArtifactError, ConfigError, suggest
from medray.models import sources
from medray.models.families import ENCODERS, Family, family_of, targets
from medray.models.libraries import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from medray.types import Head, Needs

_CONFIGS = Path(__file__).with_name("architectures.json")
KINDS: dict[Needs, Any] = {
    "head": AutoModelForSequenceClassification,
    "token head": AutoModelForTokenClassification,
    "language model": AutoModelForCausalLM,
}


def is_encoder(config: Any) -> bool:
    """Return whether a model was trained with both sides of each token, or continues no text for
    another reason."""
    if getattr(config, "is_decoder", False):
        return False
    return (
        config.model_type in ENCODERS or config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    )


def layer_kinds(network: Any) -> set[str]:
    """Return the kinds of a network's layers, as transformers names them in a configuration."""
    kinds, _ = get_layer_types_and_kwargs(network.config.get_text_config(decoder=True))
    return set(kinds)


def has_only_attention(network: Any) -> bool:
    """Return whether all layers attend to all tokens or to a window, and store only keys and
    values."""
    is_stateful = getattr(network, "_is_stateful", False)
    return not is_stateful and layer_kinds(network) <= {"full_attention", "sliding_attention"}


def check_generation(network: Any, where: str) -> None:
    """Raise where a network has states that no cache of transformers holds, since texts need
    one."""
    has_cache = "past_key_values" in inspect.signature(network.forward).parameters
    if has_cache and getattr(network, "_is_stateful", False):
        config = network.config.get_text_config(decoder=True)
        has_cache = any(DynamicCache(config=config).is_linear)
    if not has_cache:
        raise ConfigError(
            f"{where}: model type {network.config.model_type!r} has layers whose states no cache "
            "of transformers holds, so it generates no texts here; use another base model"
        )


def needs_for(config: Any, needs: Needs) -> Needs:
    """Return the kind of model for a task that both encoders and decoders can do."""
    if needs != "head or language model":
        return needs
    return "head" if is_encoder(config) else "language model"


def needs_of(head: Head | None) -> Needs:
    """Return the kind of model that a head needs."""
    if head is None:
        return "language model"
    return "token head" if head.per_token else "head"


def load_config(folder: Path, source: str) -> Any:
    """Load the configuration in a folder. Errors name `source`."""
    try:
        config = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as err:
        raise ArtifactError(
            f"{source}: transformers cannot load its config.json without running code from it: "
            f"{first_line(err)}"
        ) from err
    quantization = getattr(config, "quantization_config", None)
    if quantization:
        method = (
            quantization.get("quant_method", "unknown")
            if isinstance(quantization, dict)
            else type(quantization).__name__
        )
        raise ArtifactError(
            f"{source}: its weights are quantized already ({method}); use the model in full "
            "precision, and model.quantization: nf4 for 4 bits"
        )
    return _text_part(config)


def _text_part(config: Any) -> Any:
    """Return the configuration of the language model inside one that also reads images or sound,
    or the configuration itself."""
    text: Any = getattr(config, "text_config", None)
    if getattr(text, "model_type", None) not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return config
    text.tie_word_embeddings = config.tie_word_embeddings
    text.dtype = text.dtype or config.dtype
    return text


def is_text_part(folder: Path) -> bool:
    """Return whether medray reads only the language model of the weights in a folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model_type = load_config(folder, str(folder)).model_type
    return bool(config.get("model_type", model_type) != model_type)


def find(source: str, revision: str | None) -> tuple[Any, str]:
    """Return the configuration of a base model, and a note where it is not from its config.json."""
    try:
        return load_config(sources.config_dir(source, revision), source), ""
    except ArtifactError as err:
        configs = json.loads(_CONFIGS.read_text(encoding="utf-8"))
        if source in configs:
            return AutoConfig.for_model(
                **configs[source]
            ), "sizes as published, since its config.json is not here"
        raise ArtifactError(
            f"{err}; planning needs only its config.json: give a folder with that as the source, "
            f"or one of these models: {suggest(source, configs)}"
        ) from None


def without_dropout(config: Any, dropout: float) -> Any:
    """Set every dropout of a configuration, and return it."""
    for name, value in config.to_dict().items():
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and ("dropout" in name or name.endswith(("_drop", "_pdrop")))
        ):
            setattr(config, name, dropout)
    return config


def outline(config_dir: Path, needs: Needs = "head") -> tuple[Any, Family]:
    """Return a network without weights from a folder's config.json, and its family."""
    config = load_config(config_dir, str(config_dir))
    network = outline_of(config, str(config_dir), needs)
    return network, family_of(network, config.model_type)


def outline_of(config: Any, where: str, needs: Needs) -> Any:
    """Return a network without weights from a configuration. Errors name `where`."""
    needs = needs_for(config, needs)
    with torch.device("meta"):
        try:
            network = KINDS[needs].from_config(config, dtype=torch.float32, trust_remote_code=False)
        except ValueError as err:
            raise ConfigError(
                f"{where}: model type {config.model_type!r} has no {needs} in transformers"
            ) from err
    if needs == "language model" and is_encoder(config):
        raise ConfigError(
            f"{where}: model type {config.model_type!r} is an encoder; this task needs a causal "
            "language model"
        )
    if needs == "language model":
        check_generation(network, where)
    return network


def check_targets(config_dir: Path, lora: LoraConfig, needs: Needs = "head") -> list[str]:
    """Return the full names of the layers that LoRA adapts, or raise a ConfigError."""
    network, family = outline(config_dir, needs)
    return targets(family, network, lora)


def num_adapter_weights(config_dir: Path, lora: LoraConfig, needs: Needs = "head") -> int:
    """Return the number of weights that train: two thin matrices per layer with LoRA, and the head
    where there is one."""
    network, family = outline(config_dir, needs)
    modules = dict(network.named_modules())
    num_lora = sum(
        lora.r * (modules[name].in_features + modules[name].out_features)
        for name in targets(family, network, lora)
    )
    heads = [
        modules[name]
        for name in (*family.head_modules, *family.optional_modules)
        if name in modules
    ]
    return num_lora + sum(weight.numel() for head in heads for weight in head.parameters())


def first_line(err: Exception) -> str:
    return (str(err).strip() or type(err).__name__).splitlines()[0][:300]
