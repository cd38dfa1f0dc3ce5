"""How large an adapter will be, by the architecture alone: no weight is read."""

from pathlib import Path

from medray.config import LoraConfig
from medray.models.build import outline
from medray.models.families import targets
from medray.tasks.base import Needs


def num_adapter_weights(config_dir: Path, lora: LoraConfig, needs: Needs = "head") -> int:
    """What trains and is stored: two thin matrices for each adapted layer, and the head where there is one."""
    bare, family = outline(config_dir, needs)
    modules = dict(bare.named_modules())
    adapted = sum(lora.r * (modules[name].in_features + modules[name].out_features) for name in targets(family, bare, lora))
    heads = [modules[name] for name in (*family.head_modules, *family.optional_modules) if name in modules]
    return adapted + sum(weight.numel() for head in heads for weight in head.parameters())
