"""The base model itself: its weights in fp32 or 4 bits, no dropout unless asked for, and a fresh head where a task needs one."""

import logging
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError

from medray.config.study import ModelOptions
from medray.errors import ArtifactError
from medray.models import quantization
from medray.models.cpu.attention import set_attention
from medray.models.families import Family, family_of
from medray.models.hf_logging import quiet
from medray.models.libraries import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification
from medray.models.sources import Base
from medray.types import Head, Needs

log = logging.getLogger(__name__)
KINDS = {"head": AutoModelForSequenceClassification, "token head": AutoModelForTokenClassification, "language model": AutoModelForCausalLM}


def needed(head: Head | None) -> Needs:
    if head is None:
        return "language model"
    return "token head" if head.per_token else "head"


def load_config(folder: Path, source: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as err:
        raise ArtifactError(
            f"{source}: its config.json is none that transformers loads, at least not without foreign code: {first_line(err)}"
        ) from err
    stored = getattr(config, "quantization_config", None)
    if stored:
        method = stored.get("quant_method", "unknown") if isinstance(stored, dict) else type(stored).__name__
        raise ArtifactError(
            f"{source}: its weights are stored quantised ({method}); allowed: the model in full precision, in 4 bits by model.quantization: nf4"
        )
    return config


def load(base: Base, head: Head | None, model: ModelOptions, *, pad_token_id: int) -> tuple[Any, Family]:
    """The model on the CPU, and its family with the modules that were drawn fresh as its head."""
    config = _config(base, head, model, pad_token_id)
    kind = KINDS[needed(head)]
    family, quantised = None, {}
    if model.quantization != "none":
        outline = _outline(base.source, kind, config)
        family = family_of(outline, config.model_type)
        quantised = quantization.settings(model, family, outline)
    try:
        with quiet():
            bare, info = kind.from_pretrained(
                str(base.path),
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=any(base.path.glob("*.safetensors")),
                weights_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # reported below, with the other weights that are not the base's
                output_loading_info=True,
                **quantised,
            )
    except UnpicklingError as err:  # whose own message advises to read the file all the same
        raise ArtifactError(f"{base.source}: its *.bin weights hold more than plain tensors, and reading the rest would run it") from err
    except (OSError, RuntimeError, ValueError, SafetensorError) as err:
        raise ArtifactError(f"{base.source}: cannot be loaded as {kind.__name__.removeprefix('Auto')}: {first_line(err)}") from err
    if quantised:
        quantization.settle(bare)
    set_attention(bare)
    family = family or family_of(bare, config.model_type)
    mismatched = {key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]}
    heads = _fresh_modules(bare, family, set(info["missing_keys"])) if head else ()
    _check_fresh(base.source, bare, f"{family.layers_path}.", heads, missing=set(info["missing_keys"]), mismatched=mismatched)
    return bare, replace(family, head_modules=heads)


def _config(base: Base, head: Head | None, model: ModelOptions, pad_token_id: int) -> Any:
    config = without_dropout(load_config(base.path, base.source), model.dropout)
    config.pad_token_id = pad_token_id
    if model.quantization == "none" and not model.double_quantization:
        log.warning("model.double_quantization: false has no effect with model.quantization: none")
    if head:
        config.num_labels = len(head.labels)
        config.id2label = dict(enumerate(head.labels))
        config.label2id = {label: number for number, label in enumerate(head.labels)}
        # Of a head that reads tokens transformers gives dropout a default of its own (0.1 for decoders).
        config.classifier_dropout = model.dropout
        config.problem_type = "multi_label_classification" if head.multi_label else "single_label_classification"
        config.use_cache = False  # a decoder would keep keys and values that a head never asks for
    return config


def without_dropout(config: Any, but: float) -> Any:
    """The configuration with this dropout wherever it has one."""
    for name, value in config.to_dict().items():
        if isinstance(value, int | float) and not isinstance(value, bool) and ("dropout" in name or name.endswith(("_drop", "_pdrop"))):
            setattr(config, name, but)
    return config


def _outline(source: str, kind: Any, config: Any) -> Any:
    """The architecture without a weight."""
    try:
        with torch.device("meta"):
            return kind.from_config(config, trust_remote_code=False)
    except ValueError as err:
        raise ArtifactError(f"{source}: cannot be loaded as {kind.__name__.removeprefix('Auto')}: {first_line(err)}") from err


def _fresh_modules(bare: Any, family: Family, missing: set[str]) -> tuple[str, ...]:
    """By the table, or for a family that it does not have, the modules that the base turns out to lack."""
    if family.head_modules:
        heads = tuple(module for module in family.head_modules if _weights_of(bare, module))  # a head that reads tokens has fewer in some
        return heads + tuple(module for module in family.optional_modules if _weights_of(bare, module) & missing)
    return _topmost(bare, missing)


def _check_fresh(source: str, bare: Any, layers: str, heads: tuple[str, ...], *, missing: set[str], mismatched: set[str]) -> None:
    """Exactly the head may be missing: anything else would stay random, and would not be saved."""
    fresh = {name for module in heads for name in _weights_of(bare, module)}
    brought = (fresh - missing) | (fresh & mismatched)
    if brought:
        raise ArtifactError(
            f"{source}: brings a head of its own ({_some(brought)}); allowed: a base without one, so that it is drawn fresh"
        )
    wrong = (missing - fresh) | mismatched | {name for name in fresh if name.startswith(layers)}
    if wrong:
        raise ArtifactError(f"{source}: the base's weights lack {_some(wrong)}, or have them in another size: not only the new head")


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _weights_of(model: Any, module: str) -> set[str]:
    return {name for name in model.state_dict() if name.startswith(f"{module}.")}


def _topmost(model: Any, missing: set[str]) -> tuple[str, ...]:
    """The largest modules of which every weight is missing."""
    found: dict[str, None] = {}
    for name in sorted(missing):
        parts = name.split(".")
        paths = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        found.update(dict.fromkeys([next((path for path in paths if _weights_of(model, path) <= missing), name)]))
    return tuple(found)


def first_line(err: Exception) -> str:
    return (str(err).strip() or type(err).__name__).splitlines()[0][:300]
