"""Model families as a table: where LoRA goes, which modules are the head, where the layers sit, on which side to pad."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch.nn import Embedding, Linear, Module, ModuleList

from medray.config import LoraConfig
from medray.errors import ConfigError, allowed

log = logging.getLogger(__name__)
Side = Literal["left", "right"]


@dataclass(frozen=True)
class Family:
    name: str
    lora_targets: tuple[str, ...]  # suffixes of module names; "output.dense" is also ".attention.output.dense", never the pooler's
    head_modules: tuple[str, ...]  # trained whole and saved with the adapter, kept out of 4 bits
    layers_path: str  # of the list of layers, from the top of the headed model
    padding_side_train: Side = "right"
    padding_side_generate: Side = "left"
    is_decoder: bool = False


_ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

FAMILIES: dict[str, Family] = {
    row.name: row
    for row in (
        Family("bert", ("query", "key", "value", "output.dense", "intermediate.dense"), ("classifier",), "bert.encoder.layer"),
        Family("roberta", ("query", "key", "value", "output.dense", "intermediate.dense"), ("classifier",), "roberta.encoder.layer"),
        Family(
            "distilbert",
            ("q_lin", "k_lin", "v_lin", "out_lin", "ffn.lin1", "ffn.lin2"),
            ("pre_classifier", "classifier"),
            "distilbert.transformer.layer",
        ),
        Family("llama", _ATTENTION_AND_MLP, ("score",), "model.layers", is_decoder=True),
    )
}


def family_of(model: Module, model_type: str, new_modules: Sequence[str]) -> Family:
    """The table's row, or for a family that has none, generic rules: every linear layer of the longest list of layers."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    lists = [(len(module), name) for name, module in model.named_modules() if isinstance(module, ModuleList)]
    if not lists:
        raise ConfigError(
            f"model type {model_type!r} is not known, and no list of layers was found in it; known: {', '.join(sorted(FAMILIES))}"
        )
    layers_path = max(lists)[1]
    inside = re.compile(re.escape(layers_path) + r"\.\d+\.(.+)")
    found = (inside.fullmatch(name) for name, module in model.named_modules() if isinstance(module, Linear))
    targets = tuple(dict.fromkeys(match.group(1) for match in found if match))
    is_decoder = bool(getattr(getattr(model, "config", None), "is_decoder", False)) or layers_path.endswith("layers")
    log.warning("model type %r has no row of its own: generic rules adapt %s in %s", model_type, ", ".join(targets), layers_path)
    return Family(model_type, targets, tuple(new_modules), layers_path, is_decoder=is_decoder)


@dataclass(frozen=True)
class Targets:
    """What PEFT is told to adapt."""

    names: tuple[str, ...]
    layers: tuple[int, ...] | None  # None: all
    layers_pattern: str
    missing: tuple[str, ...] = field(default=())


def resolve_targets(model: Module, family: Family, lora: LoraConfig) -> Targets:
    """Check what is asked against what there is: PEFT itself is silent about a name that matches nothing."""
    linear = [name for name, module in model.named_modules() if isinstance(module, (Linear, Embedding)) and not _in_head(name, family)]
    wanted = lora.targets or family.lora_targets
    missing = tuple(target for target in wanted if not any(f".{name}".endswith(f".{target}") for name in linear))
    inside = {re.sub(r".*\.\d+\.", "", name) for name in linear if re.search(r"\.\d+\.", name)}
    short = inside | {name.rsplit(".", 1)[-1] for name in inside}
    if len(missing) == len(wanted):
        raise ConfigError(f"lora.targets: none of {', '.join(wanted)} is a linear layer of {family.name}; {allowed(wanted[0], short)}")
    if missing:
        hints = "; ".join(f"{target!r}: {allowed(target, short)}" for target in missing)
        log.warning("lora.targets: these match nothing in %s and are left out: %s", family.name, hints)
    num_layers = len(model.get_submodule(family.layers_path)) if family.layers_path else 0  # type: ignore[arg-type]
    if lora.top_layers is not None and lora.top_layers > num_layers:
        raise ConfigError(f"lora.top_layers: {lora.top_layers} asked for, {family.name} has {num_layers} layers here")
    layers = None if lora.top_layers is None else tuple(range(num_layers - lora.top_layers, num_layers))
    present = tuple(target for target in wanted if target not in missing)
    return Targets(present, layers, family.layers_path.rsplit(".", 1)[-1], missing)


def _in_head(name: str, family: Family) -> bool:
    return any(name == head or name.startswith(f"{head}.") for head in family.head_modules)
