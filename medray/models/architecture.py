"""The architecture of a base model whose files need not be here: by its config.json, or for some of the Hub by their published sizes."""

import json
from pathlib import Path
from typing import Any

from medray.config.study import LoraConfig
from medray.errors import ArtifactError, allowed
from medray.models import sources
from medray.models.build import outline
from medray.models.families import targets
from medray.models.network import load_config
from medray.types import Needs

_PUBLISHED = Path(__file__).with_name("shapes.json")


def find(source: str, revision: str | None) -> tuple[Any, str]:
    """Its configuration, and a note where it is not from its own files."""
    try:
        return load_config(sources.config_dir(source, revision), source), ""
    except ArtifactError as err:
        published = json.loads(_PUBLISHED.read_text(encoding="utf-8"))
        if source in published:
            return _made(published[source]), "by its published sizes: its config.json is not here"
        raise ArtifactError(
            f"{err}; planning needs its config.json alone: a folder with it can be the source, and these are known without: {allowed(source, published)}"
        ) from None


def _made(values: dict[str, Any]) -> Any:
    from medray.models.libraries import AutoConfig

    return AutoConfig.for_model(**values)


def num_adapter_weights(config_dir: Path, lora: LoraConfig, needs: Needs = "head") -> int:
    """What trains and is stored: two thin matrices for each adapted layer, and the head where there is one."""
    bare, family = outline(config_dir, needs)
    modules = dict(bare.named_modules())
    adapted = sum(lora.r * (modules[name].in_features + modules[name].out_features) for name in targets(family, bare, lora))
    heads = [modules[name] for name in (*family.head_modules, *family.optional_modules) if name in modules]
    return adapted + sum(weight.numel() for head in heads for weight in head.parameters())
