"""Model families as a table: where LoRA goes, which modules are the head, where the layers sit, on
which side to pad."""

import difflib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch.nn import Linear, Module, ModuleList

from medray.config.study import LoraConfig
from medray.errors import ConfigError

log = logging.getLogger(__name__)
Side = Literal["left", "right"]


@dataclass(frozen=True)
class Family:
    name: str
    lora_targets: tuple[
        str, ...
    ]  # linear layers by their names inside a layer, or the ends of those
    head_modules: tuple[str, ...]  # trained whole and saved with the adapter, kept out of 4 bits
    # of the list of layers, from the top of the model; what lies outside it is never adapted
    layers_path: str
    optional_modules: tuple[
        str, ...
    ] = ()  # some bases lack them: drawn fresh, they are trained and saved as the head is
    padding_side_train: Side = "right"
    is_encoder: bool = False
    in_vllm: bool = False  # vLLM has this architecture, and puts LoRA on it


_BERT = (
    *(
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    ),
    *("intermediate.dense", "output.dense"),
)
_DISTILBERT = (
    *(f"attention.{name}_lin" for name in ("q", "k", "v", "out")),
    "ffn.lin1",
    "ffn.lin2",
)
_QKV = ("q_proj", "k_proj", "v_proj")
_LLAMA = (*_QKV, "o_proj", "gate_proj", "up_proj", "down_proj")

FAMILIES: dict[str, Family] = {
    row.name: row
    for row in (
        Family(
            "bert",
            _BERT,
            ("classifier",),
            "bert.encoder.layer",
            optional_modules=("bert.pooler",),
            is_encoder=True,
        ),
        Family("roberta", _BERT, ("classifier",), "roberta.encoder.layer", is_encoder=True),
        Family(
            "distilbert",
            _DISTILBERT,
            ("pre_classifier", "classifier"),
            "distilbert.transformer.layer",
            is_encoder=True,
        ),
        Family("llama", _LLAMA, ("score",), "model.layers", in_vllm=True),
        Family("mistral", _LLAMA, ("score",), "model.layers", in_vllm=True),
        Family(
            "phi",
            (*_QKV, "self_attn.dense", "fc1", "fc2"),
            ("score",),
            "model.layers",
            in_vllm=True,
        ),
        Family(
            "phi3",
            ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
            ("score",),
            "model.layers",
            in_vllm=True,
        ),  # Phi-4-mini too
        Family(
            "opt",
            (*_QKV, "out_proj", "fc1", "fc2"),
            ("score",),
            "model.decoder.layers",
            in_vllm=True,
        ),
    )
}
# transformers builds causal language models of these too, which see no more than what is before a
# token and were never trained so.
ENCODERS = (
    *(row.name for row in FAMILIES.values() if row.is_encoder),
    "electra",
)  # electra has no row: generic rules adapt it


def family_of(model: Module, model_type: str) -> Family:
    """The table's row, or for a type that has none, generic rules: every linear layer of the list
    that holds most of them.

    The head of such a model is not known here: it is what its base turns out not to have.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    lists = [
        (len(_linear(module)), -len(name), name)
        for name, module in model.named_modules()
        if isinstance(module, ModuleList)
    ]
    num_linear, _, layers_path = max(
        lists, default=(0, 0, "")
    )  # of nested lists (experts) the outer one, whose name is shorter
    if not num_linear:
        known = ", ".join(sorted(FAMILIES))
        raise ConfigError(
            f"model type {model_type!r}: has no list of layers with linear ones to adapt; known "
            f"types: {known}"
        )
    adaptable = _inside_layers(model, layers_path)
    log.warning(
        "model type %r has no row of its own: generic rules adapt %s of %s",
        model_type,
        ", ".join(adaptable),
        layers_path,
    )
    return Family(model_type, tuple(adaptable), (), layers_path)


def targets(family: Family, model: Module, lora: LoraConfig) -> list[str]:
    """Full names of the modules to adapt. PEFT itself says nothing about a name that matches no
    module."""
    inside = _inside_layers(model, family.layers_path)
    wanted = lora.targets if lora.targets is not None else family.lora_targets
    unmatched = [target for target in wanted if not _matching(target, inside)]
    if len(unmatched) == len(wanted):
        raise ConfigError(
            f"lora.targets: none of {', '.join(wanted)} is a linear layer of {family.name}; "
            f"{_allowed(unmatched, inside)}"
        )
    if unmatched:
        log.warning(
            "lora.targets: left out, no linear layer of %s: %s; %s",
            family.name,
            ", ".join(unmatched),
            _allowed(unmatched, inside),
        )
    num_layers = len(_layers(model, family.layers_path))
    top_layers = num_layers if lora.top_layers is None else lora.top_layers
    if top_layers > num_layers:
        raise ConfigError(
            f"lora.top_layers: {top_layers} asked for, {family.name} has {num_layers} layers here"
        )
    chosen = {name for target in wanted for name in _matching(target, inside)}
    layers = range(num_layers - top_layers, num_layers)
    found = [
        f"{family.layers_path}.{layer}.{name}"
        for layer in layers
        for name in inside
        if name in chosen
    ]
    present = dict(model.named_modules())
    return [
        name for name in found if name in present
    ]  # layers may differ: in some families only a few have experts


def _layers(model: Module, layers_path: str) -> ModuleList:
    layers = model.get_submodule(layers_path)
    assert isinstance(layers, ModuleList)
    return layers


def _linear(module: Module) -> list[str]:
    return [name for name, inner in module.named_modules() if isinstance(inner, Linear)]


def _inside_layers(model: Module, layers_path: str) -> list[str]:
    """Names of the linear layers inside a layer, each once, in the order they come in."""
    return list(
        dict.fromkeys(
            name.split(".", 1)[1] for name in _linear(_layers(model, layers_path)) if "." in name
        )
    )


def _matching(target: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if f".{name}".endswith(f".{target}")]


def _allowed(unmatched: Iterable[str], inside: list[str]) -> str:
    ends = {
        ".".join(parts[at:])
        for parts in (name.split(".") for name in inside)
        for at in range(len(parts))
    }
    near = [
        close[0]
        for target in unmatched
        if (close := difflib.get_close_matches(target, sorted(ends), n=1, cutoff=0.6))
    ]
    return f"allowed: {', '.join(inside)}" + (
        f"; did you mean {', '.join(map(repr, near))}?" if near else ""
    )
