"""The table of model families: LoRA targets, head modules, the path of the layers and the side of
padding."""

import difflib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch.nn import Linear, Module, ModuleList

from medray.config.trial import LoraConfig
from medray.errors import ConfigError

log = logging.getLogger(__name__)
Side = Literal["left", "right"]


@dataclass(frozen=True)
class Family:
    name: str
    # linear layers, by their names inside a layer or the ends of those names
    lora_targets: tuple[str, ...]
    head_modules: tuple[
        str, ...
    ]  # train whole, are saved with the adapter, and are never in 4 bits
    # of the list of layers, from the top of the model; LoRA adapts nothing outside it
    layers_path: str
    # some base models lack them; then they start random, and train and are saved like the head
    optional_modules: tuple[str, ...] = ()
    padding_side_train: Side = "right"
    is_encoder: bool = False
    in_vllm: bool = False  # vLLM supports this architecture with LoRA


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
        Family(
            "modernbert",
            ("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"),
            ("classifier",),
            "model.layers",
            optional_modules=("head",),
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
        ),  # also Phi-4-mini
        Family(
            "opt",
            (*_QKV, "out_proj", "fc1", "fc2"),
            ("score",),
            "model.decoder.layers",
            in_vllm=True,
        ),
        Family("qwen2", _LLAMA, ("score",), "model.layers", in_vllm=True),
        Family("qwen3", _LLAMA, ("score",), "model.layers", in_vllm=True),
        Family(
            "qwen3_5_text",
            (*_LLAMA, "linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "linear_attn.out_proj"),
            ("score",),
            "model.layers",
        ),
        Family("gemma2", _LLAMA, ("score",), "model.layers", in_vllm=True),
        Family("gemma3_text", _LLAMA, ("score",), "model.layers", in_vllm=True),
        Family("gemma4_text", _LLAMA, ("score",), "model.layers"),
        Family("smollm3", _LLAMA, ("score",), "model.layers"),
        Family("ministral3", _LLAMA, ("score",), "model.layers"),
    )
}
# transformers builds causal language models from these too, although they were trained with both
# sides of a token.
ENCODERS = (
    *(row.name for row in FAMILIES.values() if row.is_encoder),
    "electra",  # has no row: generic rules adapt it
)


def family_of(model: Module, model_type: str) -> Family:
    """Return the row of a model type, or a family by generic rules.

    The rules adapt every linear layer of the list that has most of them. The head is unknown then:
    it is the modules that the base model's weights lack.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    lists = [
        (len(_linear(module)), -len(name), name)
        for name, module in model.named_modules()
        if isinstance(module, ModuleList)
    ]
    # of nested lists (experts), the outer one has the shorter name
    num_linear, _, layers_path = max(lists, default=(0, 0, ""))
    if not num_linear:
        types = ", ".join(sorted(FAMILIES))
        raise ConfigError(
            f"model type {model_type!r}: has no list of layers with linear layers to adapt; use "
            f"one of {types}"
        )
    adaptable = _inside_layers(model, layers_path)
    log.warning(
        "model type %r is not in the table of families; LoRA adapts %s of %s by generic rules",
        model_type,
        ", ".join(adaptable),
        layers_path,
    )
    return Family(model_type, tuple(adaptable), (), layers_path)


def targets(family: Family, model: Module, lora: LoraConfig) -> list[str]:
    """Return the full names of the modules to adapt.

    Raises where no target matches, and warns where some do not; PEFT itself does neither.
    """
    inside = _inside_layers(model, family.layers_path)
    patterns = lora.targets if lora.targets is not None else family.lora_targets
    without_match = [target for target in patterns if not _matching(target, inside)]
    if len(without_match) == len(patterns):
        raise ConfigError(
            f"lora.targets: none of {', '.join(patterns)} is a linear layer of {family.name}; "
            f"{_suggestion(without_match, inside)}"
        )
    if without_match:
        log.warning(
            "lora.targets: no linear layer of %s matches %s; %s",
            family.name,
            ", ".join(without_match),
            _suggestion(without_match, inside),
        )
    num_layers = len(_layers(model, family.layers_path))
    top_layers = num_layers if lora.top_layers is None else lora.top_layers
    if top_layers > num_layers:
        raise ConfigError(
            f"lora.top_layers: {top_layers} is more than the {num_layers} layers of this "
            f"{family.name}; set at most {num_layers}"
        )
    matches = {name for target in patterns for name in _matching(target, inside)}
    layers = range(num_layers - top_layers, num_layers)
    names = [
        f"{family.layers_path}.{layer}.{name}"
        for layer in layers
        for name in inside
        if name in matches
    ]
    # layers may differ: in some families only a few have experts
    modules = dict(model.named_modules())
    return [name for name in names if name in modules]


def _layers(model: Module, layers_path: str) -> ModuleList:
    layers = model.get_submodule(layers_path)
    assert isinstance(layers, ModuleList)
    return layers


def _linear(module: Module) -> list[str]:
    return [name for name, inner in module.named_modules() if isinstance(inner, Linear)]


def _inside_layers(model: Module, layers_path: str) -> list[str]:
    """Return the names of the linear layers inside a layer, each once and in order."""
    return list(
        dict.fromkeys(
            name.split(".", 1)[1] for name in _linear(_layers(model, layers_path)) if "." in name
        )
    )


def _matching(target: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if f".{name}".endswith(f".{target}")]


def _suggestion(without_match: Iterable[str], inside: list[str]) -> str:
    ends = {
        ".".join(parts[at:])
        for parts in (name.split(".") for name in inside)
        for at in range(len(parts))
    }
    near = [
        close[0]
        for target in without_match
        if (close := difflib.get_close_matches(target, sorted(ends), n=1, cutoff=0.6))
    ]
    return f"allowed: {', '.join(inside)}" + (
        f"; did you mean {', '.join(map(repr, near))}?" if near else ""
    )
