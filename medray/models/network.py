"""Loads the network of a base model in fp32 or 4 bits, with a new head where a task needs one.

Dropout is 0 unless requested."""

import logging
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError

from medray.config.trial import ModelOptions
from medray.errors import ArtifactError
from medray.models import quantization
from medray.models.adapter import first_names
from medray.models.architecture import (
    KINDS,
    first_line,
    is_text_part,
    load_config,
    needs_of,
    outline_of,
    without_dropout,
)
from medray.models.batch import set_attention
from medray.models.families import Family, family_of
from medray.models.libraries import quiet
from medray.models.mean_pooling import pool_means
from medray.models.sources import Base
from medray.types import Head, Needs

log = logging.getLogger(__name__)
# The names of a language model's weights inside a model that also reads images, and their names in
# a language model of its own.
_TEXT_NAMES = {
    r"^language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}


def load(
    base: Base, head: Head | None, model: ModelOptions, *, pad_token_id: int
) -> tuple[Any, Family]:
    """Load a network on the CPU, and return it with its family.

    The family's `head_modules` are the modules that the base model's weights lack.
    """
    config = _config(base, head, model, pad_token_id)
    needs = needs_of(head)
    names: dict[str, Any] = {"key_mapping": _TEXT_NAMES} if is_text_part(base.path) else {}
    if model.quantization == "none":
        network, info = _read(base.source, base.path, needs, config, **names)
        if names:  # saved as a language model of its own
            network._weight_conversions = []
        return _check(network, info, base, head, family_of(network, config.model_type))
    outline = outline_of(config, base.source, needs)
    family = family_of(outline, config.model_type)
    options = quantization.settings(model, family, outline)
    folder = quantization.packed_dir(base.weight_hash, needs, model)
    with quantization.packing(folder) as is_packed:
        if is_packed:
            # transformers knows by this field that the weights need no quantization
            config.quantization_config = options.pop("quantization_config").to_dict()
        place = folder if is_packed else base.path
        network, info = _read(
            base.source, place, needs, config, **options, **({} if is_packed else names)
        )
        if is_packed or names:
            # A merged model is saved as it is. transformers (5.19) would revert how it read the
            # packed weights, and cannot.
            network._weight_conversions = []
        # before a pooled head takes modules away
        weights = {} if is_packed else network.state_dict()
        result = _check(network, info, base, head, family)
        if not is_packed:
            own = {name: weights[name] for name in weights if name not in info["missing_keys"]}
            quantization.pack(own, base.path, folder)
    quantization.settle(network)
    return result


def _read(
    source: str, folder: Path, needs: Needs, config: Any, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Return a network with the weights of a folder, and what transformers reports about them."""
    kind = KINDS[needs]
    try:
        with quiet():
            network, info = kind.from_pretrained(
                str(folder),
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=any(folder.glob("*.safetensors")),
                weights_only=True,
                trust_remote_code=False,
                # reported below, with the other weights that the base model lacks
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
    except UnpicklingError as err:  # its message advises to read the file all the same
        raise ArtifactError(
            f"{source}: its *.bin weights contain more than tensors, and reading that would run "
            "code; use a model with safetensors"
        ) from err
    except (OSError, RuntimeError, ValueError, SafetensorError) as err:
        raise ArtifactError(
            f"{source}: cannot be loaded as {kind.__name__.removeprefix('Auto')}: {first_line(err)}"
        ) from err
    return network, info


def _check(
    network: Any, info: dict[str, Any], base: Base, head: Head | None, family: Family
) -> tuple[Any, Family]:
    """Set attention and pooling, and return the network with its family. Raise unless exactly the
    head is new."""
    set_attention(network)
    other_shapes = {key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]}
    missing = set(info["missing_keys"])
    if head and head.pooling == "mean":
        missing -= pool_means(network)
    heads = _fresh_modules(network, family, missing) if head else ()
    _check_fresh(
        base.source,
        network,
        f"{family.layers_path}.",
        heads,
        missing=missing,
        other_shapes=other_shapes,
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
        # transformers has a default of its own for the dropout of a token head (0.1 for decoders).
        config.classifier_dropout = model.dropout
        config.problem_type = (
            "multi_label_classification" if head.multi_label else "single_label_classification"
        )
        config.use_cache = False  # a decoder would store keys and values that a head never reads
    return config


def _fresh_modules(network: Any, family: Family, missing: set[str]) -> tuple[str, ...]:
    """Return the modules of the head, by the table or by the weights that are missing."""
    if family.head_modules:
        heads = tuple(
            module for module in family.head_modules if _weights_of(network, module)
        )  # a token head has fewer modules in some families
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
    other_shapes: set[str],
) -> None:
    """Raise unless exactly the head is missing: other weights would stay random and unsaved."""
    fresh = {name for module in heads for name in _weights_of(network, module)}
    own_head = (fresh - missing) | (fresh & other_shapes)
    if own_head:
        raise ArtifactError(
            f"{source}: has a head already ({first_names(own_head)}); use a base model without one"
        )
    wrong = (missing - fresh) | other_shapes | {name for name in fresh if name.startswith(layers)}
    if wrong:
        raise ArtifactError(
            f"{source}: more than the head is missing or has another shape: {first_names(wrong)}; "
            "use complete weights"
        )


def _weights_of(model: Any, module: str) -> set[str]:
    return {name for name in model.state_dict() if name.startswith(f"{module}.")}


def _topmost(model: Any, missing: set[str]) -> tuple[str, ...]:
    """Return the largest modules whose weights are all missing."""
    modules: dict[str, None] = {}
    for name in sorted(missing):
        parts = name.split(".")
        paths = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        modules.update(
            dict.fromkeys(
                [next((path for path in paths if _weights_of(model, path) <= missing), name)]
            )
        )
    return tuple(modules)
