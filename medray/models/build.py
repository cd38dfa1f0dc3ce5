"""A model for training and for inference: the network of a base, its head and adapter, and the
tokenizer; how it is saved and merged."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medray.config.study import LoraConfig, ModelOptions
from medray.errors import ArtifactError, ConfigError
from medray.models import adapter, quantization
from medray.models.architecture import first_line, needs_of
from medray.models.families import Family
from medray.models.libraries import AutoTokenizer, PeftModel, quiet
from medray.models.network import load
from medray.models.sources import Base
from medray.types import Head


@dataclass
class BuiltModel:
    model: Any  # the network, in a PeftModel where it has an adapter
    tokenizer: Any
    family: Family
    base: Base
    head: Head | None

    @property
    def num_parameters(self) -> int:
        # PEFT keeps the head as it was drawn beside the one that is trained.
        return sum(
            quantization.num_weights(parameter)
            for name, parameter in self.model.named_parameters()
            if ".original_module." not in name
        )

    @property
    def num_trainable(self) -> int:
        return sum(
            parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad
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
    """A fresh adapter on the base, drawn from `seed`, or with `adapter_dir` the one saved there,
    whatever `lora` says.

    Without either, the base as it is. Weights lie on the CPU, in fp32 or 4 bits; whatever runs the
    model chooses the arithmetic."""
    tokenizer = load_tokenizer(adapter_dir / "tokenizer" if adapter_dir else base.path)
    with _seeded(seed):
        network, family = load(base, head, model, pad_token_id=tokenizer.pad_token_id)
        adapter.freeze(network, model)
        if adapter_dir:
            network = adapter.restore(network, family, adapter_dir)
        elif lora:
            network = adapter.attach(network, family, lora, needs_of(head))
    return BuiltModel(network, tokenizer, family, base, head)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a base or checkpoint, able to pad."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as err:
        raise ArtifactError(f"{folder}: its tokenizer cannot be loaded: {first_line(err)}") from err
    files = {"tokenizer.json", *getattr(type(tokenizer), "vocab_files_names", {}).values()}
    if not any(
        (folder / name).is_file() for name in files
    ):  # transformers would make up an empty vocabulary, and say nothing
        raise ArtifactError(
            f"{folder}: its tokenizer cannot be loaded: there is none of {', '.join(sorted(files))}"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ArtifactError(
                f"{folder}: its tokenizer has neither a pad nor an end-of-sequence token, so rows "
                "cannot be padded"
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def save(built: BuiltModel, folder: Path) -> None:
    """Write an ordinary PEFT folder, head inside, and the tokenizer."""
    if not isinstance(built.model, PeftModel):
        raise ConfigError(
            f"{built.base.source}: was built without an adapter, so there is nothing to save"
        )
    folder.mkdir(parents=True, exist_ok=True)
    state = adapter.state(built.model)
    adapter.write(
        state,
        built.model.peft_config["default"],
        folder,
        source=built.base.source,
        revision=built.base.revision,
    )
    built.tokenizer.save_pretrained(str(folder / "tokenizer"))


def merge(built: BuiltModel) -> BuiltModel:
    """The model in fp32 with the adapter added to its weights, which happens in place: `built` is
    of no use afterwards."""
    network = quantization.dequantise(built.model)
    return replace(
        built, model=adapter.merge(network) if isinstance(network, PeftModel) else network
    )


def export_merged(built: BuiltModel, folder: Path) -> None:
    """Write a folder in the Hub's layout that plain transformers loads, tokenizer included. `built`
    stays as it is: a copy is merged."""
    merged = merge(replace(built, model=copy.deepcopy(built.model)))
    with quiet():
        merged.model.save_pretrained(str(folder))
    built.tokenizer.save_pretrained(str(folder))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Fresh weights depend on the seed alone, and the caller's random numbers go on as if none had
    been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
