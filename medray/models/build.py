"""The one function that makes a model, for training and for inference: base, head, adapter, tokenizer."""

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
from medray.models.families import ENCODERS, Family, family_of, targets
from medray.models.hf_logging import quiet
from medray.models.libraries import AutoTokenizer, PeftModel
from medray.models.network import KINDS, first_line, load, load_config, needed
from medray.models.sources import Base
from medray.types import Head, Needs

PEFT_TYPES = {"head": "SEQ_CLS", "token head": "TOKEN_CLS", "language model": "CAUSAL_LM"}


@dataclass
class Built:
    model: Any  # a PeftModel, or without an adapter the plain one
    tokenizer: Any
    family: Family
    base: Base
    head: Head | None

    @property
    def num_parameters(self) -> int:
        # PEFT keeps the head as it was drawn beside the one that is trained.
        return sum(
            quantization.num_weights(parameter) for name, parameter in self.model.named_parameters() if ".original_module." not in name
        )

    @property
    def num_trainable(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)


def build(
    base: Base, head: Head | None, model: ModelOptions, lora: LoraConfig | None, *, adapter_dir: Path | None = None, seed: int = 0
) -> Built:
    """A fresh adapter on the base, drawn from `seed`, or with `adapter_dir` the one saved there, whatever `lora` says.

    Without either, the base as it is. Weights lie on the CPU, in fp32 or 4 bits; the arithmetic is chosen by who runs the model.
    """
    tokenizer = load_tokenizer(adapter_dir / "tokenizer" if adapter_dir else base.path)
    with _seeded(seed):
        bare, family = load(base, head, model, pad_token_id=tokenizer.pad_token_id)
        bare.requires_grad_(False)
        if model.gradient_checkpointing:
            bare.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            bare.enable_input_require_grads()
        if adapter_dir:
            bare = adapter.restore(bare, family, adapter_dir)
        elif lora:
            bare = adapter.attach(bare, family, lora, task_type=PEFT_TYPES[needed(head)])
    return Built(bare, tokenizer, family, base, head)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a base or checkpoint, able to pad."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as err:
        raise ArtifactError(f"{folder}: its tokenizer cannot be loaded: {first_line(err)}") from err
    files = {"tokenizer.json", *getattr(type(tokenizer), "vocab_files_names", {}).values()}
    if not any((folder / name).is_file() for name in files):  # transformers would make up an empty vocabulary, and say nothing
        raise ArtifactError(f"{folder}: its tokenizer cannot be loaded: there is none of {', '.join(sorted(files))}")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ArtifactError(f"{folder}: its tokenizer has neither a pad nor an end-of-sequence token, so rows cannot be padded")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def check_targets(config_dir: Path, lora: LoraConfig, needs: Needs = "head") -> list[str]:
    """Full names of what would be adapted, by the architecture alone: no weight is read. Raises what is wrong with them."""
    bare, family = outline(config_dir, needs)
    return targets(family, bare, lora)


def outline(config_dir: Path, needs: Needs = "head") -> tuple[Any, Family]:
    """The architecture without a weight, and its family."""
    config = load_config(config_dir, str(config_dir))
    bare = outline_of(config, str(config_dir), needs)
    return bare, family_of(bare, config.model_type)


def outline_of(config: Any, where: str, needs: Needs) -> Any:
    with torch.device("meta"):
        try:
            bare = KINDS[needs].from_config(config, trust_remote_code=False)
        except ValueError as err:
            raise ConfigError(f"{where}: model type {config.model_type!r} has no {needs} in transformers") from err
    if needs == "language model" and not getattr(config, "is_decoder", False) and config.model_type in ENCODERS:
        raise ConfigError(f"{where}: model type {config.model_type!r} is an encoder: this task needs a causal language model")
    return bare


def save(built: Built, folder: Path) -> None:
    """An ordinary PEFT folder, head inside, and the tokenizer."""
    if not isinstance(built.model, PeftModel):
        raise ConfigError(f"{built.base.source}: was built without an adapter, so there is nothing to save")
    folder.mkdir(parents=True, exist_ok=True)
    state = adapter.state(built.model)
    adapter.write(state, built.model.peft_config["default"], folder, source=built.base.source, revision=built.base.revision)
    built.tokenizer.save_pretrained(str(folder / "tokenizer"))


def merge(built: Built) -> Any:
    """The plain model with the adapter added to its weights. In place: `built.model` is used up."""
    plain = quantization.dequantise(built.model)
    return adapter.merge(plain) if isinstance(plain, PeftModel) else plain


def export_merged(built: Built, folder: Path) -> None:
    """A folder in the Hub's layout that plain transformers loads, tokenizer included. Merged is a copy: `built` stays as it is."""
    plain = merge(replace(built, model=copy.deepcopy(built.model)))
    with quiet():
        plain.save_pretrained(str(folder))
    built.tokenizer.save_pretrained(str(folder))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Fresh weights depend on the seed alone, and the caller's random numbers go on as if none had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
