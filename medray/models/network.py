"""The network of a base: its weights read in fp32 or 4 bits, no dropout unless requested, and a
fresh head where a task needs one."""

import logging
from dataclasses import replace
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError

from medray.config.study import ModelOptions
from medray.errors import ArtifactError
from medray.models import quantization
from medray.models.adapter import first_names
from medray.models.architecture import (
    KINDS,
    first_line,
    load_config,
    needs_of,
    outline_of,
    without_dropout,
)
from medray.models.batch import set_attention
from medray.models.families import Family, family_of
from medray.models.libraries import quiet
from medray.models.sources import Base
from medray.types import Head

log = logging.getLogger(__name__)


def load(
    base: Base, head: Head | None, model: ModelOptions, *, pad_token_id: int
) -> tuple[Any, Family]:
    """The network on the CPU, and its family with the modules that were drawn fresh as its head."""
    config = _config(base, head, model, pad_token_id)
    needs = needs_of(head)
    kind = KINDS[needs]
    family, quantised = None, {}
    if model.quantization != "none":
        outline = outline_of(config, base.source, needs)
        family = family_of(outline, config.model_type)
        quantised = quantization.settings(model, family, outline)
    try:
        with quiet():
            network, info = kind.from_pretrained(
                str(base.path),
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=any(base.path.glob("*.safetensors")),
                weights_only=True,
                trust_remote_code=False,
                # reported below, with the other weights that are not the base's
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **quantised,
            )
    except UnpicklingError as err:  # whose own message advises to read the file all the same
        raise ArtifactError(
            f"{base.source}: its *.bin weights hold more than plain tensors, and reading the rest "
            "would run it"
        ) from err
    except (OSError, RuntimeError, ValueError, SafetensorError) as err:
        raise ArtifactError(
            f"{base.source}: cannot be loaded as {kind.__name__.removeprefix('Auto')}: "
            f"{first_line(err)}"
        ) from err
    if quantised:
        quantization.settle(network)
    set_attention(network)
    family = family or family_of(network, config.model_type)
    mismatched = {key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]}
    heads = _fresh_modules(network, family, set(info["missing_keys"])) if head else ()
    _check_fresh(
        base.source,
        network,
        f"{family.layers_path}.",
        heads,
        missing=set(info["missing_keys"]),
        mismatched=mismatched,
    )
    return network, replace(family, head_modules=heads)


def _config(base: Base, head: Head | None, model: ModelOptions, pad_token_id: int) -> Any:
    config = without_dropout(load_config(base.path, base.source), model.dropout)
    config.pad_token_id = pad_token_id
    if model.quantization == "none" and not model.double_quantization:
        log.warning("model.double_quantization: false has no effect with model.quantization: none")
    if head:
        config.num_labels = len(head.labels)
        config.id2label = dict(enumerate(head.labels))
        config.label2id = {label: number for number, label in enumerate(head.labels)}
        # Of a head that reads tokens transformers gives dropout a default of its own (0.1 for
        # decoders).
        config.classifier_dropout = model.dropout
        config.problem_type = (
            "multi_label_classification" if head.multi_label else "single_label_classification"
        )
        config.use_cache = False  # a decoder would keep keys and values that a head never asks for
    return config


def _fresh_modules(network: Any, family: Family, missing: set[str]) -> tuple[str, ...]:
    """By the table, or for a family that it does not have, the modules that the base turns out to
    lack."""
    if family.head_modules:
        heads = tuple(
            module for module in family.head_modules if _weights_of(network, module)
        )  # a head that reads tokens has fewer in some
        return heads + tuple(
            module for module in family.optional_modules if _weights_of(network, module) & missing
        )
    return _topmost(network, missing)


def _check_fresh(
    source: str,
    network: Any,
    layers: str,
    heads: tuple[str, ...],
    *,
    missing: set[str],
    mismatched: set[str],
) -> None:
    """Exactly the head may be missing: anything else would stay random, and would not be saved."""
    fresh = {name for module in heads for name in _weights_of(network, module)}
    brought = (fresh - missing) | (fresh & mismatched)
    if brought:
        raise ArtifactError(
            f"{source}: brings a head of its own ({first_names(brought)}); allowed: a base "
            "without one, so that it is drawn fresh"
        )
    wrong = (missing - fresh) | mismatched | {name for name in fresh if name.startswith(layers)}
    if wrong:
        raise ArtifactError(
            f"{source}: the base's weights lack {first_names(wrong)}, or have them in another "
            "size: not only the new head"
        )


def _weights_of(model: Any, module: str) -> set[str]:
    return {name for name in model.state_dict() if name.startswith(f"{module}.")}


def _topmost(model: Any, missing: set[str]) -> tuple[str, ...]:
    """The largest modules of which every weight is missing."""
    found: dict[str, None] = {}
    for name in sorted(missing):
        parts = name.split(".")
        paths = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        found.update(
            dict.fromkeys(
                [next((path for path in paths if _weights_of(model, path) <= missing), name)]
            )
        )
    return tuple(found)
