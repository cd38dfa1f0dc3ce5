"""Builds a model from a base model, with head, adapter and tokenizer, and saves and merges it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medray.config.trial import LoraConfig, ModelOptions, Precision
from medray.errors import ArtifactError, ConfigError
from medray.models import adapter, frozen_weights, quantization
from medray.models.architecture import first_line, load_config, needs_of
from medray.models.families import Family
from medray.models.libraries import AutoTokenizer, PeftModel, quiet
from medray.models.network import load
from medray.models.precision import DTYPES, round_weights
from medray.models.sources import Base
from medray.types import Head


@dataclass
class BuiltModel:
    network: Any  # in a PeftModel where it has an adapter
    tokenizer: Any
    family: Family
    base: Base
    head: Head | None

    @property
    def num_parameters(self) -> int:
        # PEFT keeps the initial head beside the one that trains.
        return sum(
            quantization.num_weights(parameter)
            for name, parameter in self.network.named_parameters()
            if ".original_module." not in name
        )

    @property
    def num_trainable(self) -> int:
        return sum(
            parameter.numel() for parameter in self.network.parameters() if parameter.requires_grad
        )


def build(
    base: Base,
    head: Head | None,
    model: ModelOptions,
    lora: LoraConfig | None,
    *,
    adapter_dir: Path | None = None,
    seed: int = 0,
) -> BuiltModel:
    """Build a model with a new adapter, or with the adapter in `adapter_dir`, where `lora` has no
    effect.

    With neither, the base model stays unchanged. New weights depend on `seed` only. Weights are on
    the CPU, in fp32 or 4 bits; the caller chooses the precision to compute in."""
    tokenizer = load_tokenizer(adapter_dir / "tokenizer" if adapter_dir else base.path)
    with _seed(seed):
        network, family = load(base, head, model, pad_token_id=tokenizer.pad_token_id)
        adapter.freeze(network, model)
        if adapter_dir:
            network = adapter.restore(network, family, adapter_dir)
        elif lora:
            network = adapter.attach(network, family, lora, needs_of(head))
    return BuiltModel(network, tokenizer, family, base, head)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a base model or checkpoint, with a pad token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as err:
        raise ArtifactError(f"{folder}: its tokenizer cannot be loaded: {first_line(err)}") from err
    files = {"tokenizer.json", *getattr(type(tokenizer), "vocab_files_names", {}).values()}
    if not any(
        (folder / name).is_file() for name in files
    ):  # transformers would use an empty vocabulary, without a warning
        raise ArtifactError(
            f"{folder}: its tokenizer cannot be loaded; the folder has none of "
            f"{', '.join(sorted(files))}"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ArtifactError(
                f"{folder}: its tokenizer has neither a pad token nor an end-of-sequence token; "
                "rows "
                "cannot be padded without one"
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def save(model: BuiltModel, folder: Path) -> None:
    """Write a PEFT folder with adapter and head, and the tokenizer."""
    if not isinstance(model.network, PeftModel):
        raise ConfigError(f"{model.base.source}: the model has no adapter to save")
    folder.mkdir(parents=True, exist_ok=True)
    state = adapter.state(model.network)
    adapter.write(
        state,
        model.network.peft_config["default"],
        folder,
        source=model.base.source,
        revision=model.base.revision,
    )
    model.tokenizer.save_pretrained(str(folder / "tokenizer"))


def merge(model: BuiltModel, precision: Precision = "fp32") -> BuiltModel:
    """Return the plain model with the adapter added to its weights.

    Sums are in fp32, and the layers that change have their weights in `precision`. One layer
    changes at a time, so a GPU holds no second copy. Works in place: do not use `model`
    afterwards."""
    network = model.network
    layers_4bit, lora_layers = quantization.layers_4bit(network), adapter.base_layers(network)
    for name in {**layers_4bit, **lora_layers}:
        if name in layers_4bit:
            quantization.dequantize(network, name)
        if name in lora_layers:
            network.get_submodule(name).float()  # it may be in 16 bits
            adapter.merge(lora_layers[name])
        if precision != "fp32":
            round_weights(network.get_submodule(name), precision)
    quantization.settle_plain(network)
    if precision == "fp32":
        frozen_weights.widen(network)
    if isinstance(network, PeftModel):
        network = network.unload()
    return replace(model, network=network)


def merge_and_export(model: BuiltModel, folder: Path, precision: Precision | None = None) -> None:
    """Merge a model, and write it with its tokenizer as a folder that plain transformers loads.
    Raise for a head that reads means, which plain transformers does not compute.

    The weights have the type of the base model's configuration, or `precision`. Works in place,
    since a large model has no room for a copy: do not use `model` afterwards."""
    if model.head and model.head.pooling == "mean":
        raise ConfigError(
            f"{model.base.source}: the head reads the mean of all tokens, and plain transformers "
            "would give it one token; export the adapter, or train with task.pooling: token"
        )
    precision = precision or _stored_precision(model.base)
    plain = merge(model, precision)
    with quiet():
        plain.network.to(DTYPES[precision]).save_pretrained(str(folder))
    model.tokenizer.save_pretrained(str(folder))


def _stored_precision(base: Base) -> Precision:
    """Return the type of a base model's weights by its configuration, or fp32 where it names
    another."""
    dtype = load_config(base.path, base.source).dtype
    return next((name for name, each in DTYPES.items() if each == dtype), "fp32")


@contextmanager
def _seed(seed: int) -> Iterator[None]:
    """Seed new weights inside a block, and restore the caller's random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
