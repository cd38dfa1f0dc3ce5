"""The one function that makes a model, for training and for inference: base, head, adapter, tokenizer."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as hf_logging

from medray.config import LoraConfig, ModelOptions
from medray.errors import ArtifactError
from medray.models.families import Family, family_of, resolve_targets
from medray.models.sources import Base
from medray.tasks.base import Head

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass
class Built:
    model: PeftModel
    tokenizer: Any
    family: Family
    base: Base
    head: Head | None

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def num_trainable(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)


def build(base: Base, head: Head | None, model: ModelOptions, lora: LoraConfig, *, adapter_dir: Path | None = None, seed: int = 0) -> Built:
    """A fresh adapter on the base, drawn from `seed`, or with `adapter_dir` the one that was saved there."""
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(adapter_dir / "tokenizer" if adapter_dir else base.path)
    bare, missing = _load_base(base, head, model, tokenizer)
    new_modules = tuple(dict.fromkeys(name.split(".", 1)[0] for name in missing))
    family = family_of(bare, bare.config.model_type, new_modules)
    unexpected = sorted(name for name in missing if not name.startswith(family.head_modules)) if head else sorted(missing)
    if unexpected:
        raise ArtifactError(f"{base.source}: the base's weights lack {', '.join(unexpected[:5])}: not only the new head")
    if adapter_dir:
        config = PeftLoraConfig.from_pretrained(str(adapter_dir))
        config.inference_mode = False
        config.base_model_name_or_path = None  # PEFT warns where it differs from the folder it finds the base in
    else:
        config = _adapter_config(bare, family, head, lora)
    adapted = get_peft_model(bare, config, autocast_adapter_dtype=False)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.bfloat16 if lora.dtype == "bf16" else torch.float32)
    if adapter_dir:
        _load_adapter(adapted, adapter_dir)
    if model.gradient_checkpointing:
        adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        adapted.enable_input_require_grads()
    return Built(adapted, tokenizer, family, base, head)


def check_targets(config_dir: Path, lora: LoraConfig) -> None:
    """Raise what is wrong with the adapter's targets, by the architecture alone: no weight is read."""
    config = AutoConfig.from_pretrained(str(config_dir), local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        bare = AutoModelForSequenceClassification.from_config(config)
    resolve_targets(bare, family_of(bare, config.model_type, ("classifier", "score")), lora)


def save(built: Built, folder: Path) -> None:
    """An ordinary PEFT folder, head inside, and the tokenizer; the base is named by its source, not by a path of this machine."""
    state = _state(built.model)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, str(folder / WEIGHTS), metadata={"format": "pt"}
    )
    config = copy(built.model.peft_config["default"])
    config.base_model_name_or_path, config.revision = built.base.source, built.base.revision
    config.save_pretrained(str(folder))
    built.tokenizer.save_pretrained(str(folder / "tokenizer"))


def merge(built: Built) -> Any:
    """The plain model with the adapter added to its weights; `built` is used up."""
    return built.model.merge_and_unload()


def export_merged(built: Built, folder: Path) -> None:
    """A folder in the Hub's layout that plain transformers loads, tokenizer included."""
    merge(built).save_pretrained(str(folder))
    built.tokenizer.save_pretrained(str(folder))


def load_tokenizer(path: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def _load_base(base: Base, head: Head | None, model: ModelOptions, tokenizer: Any) -> tuple[Any, list[str]]:
    """The bare model in fp32 and the names of the weights that the base does not have."""
    config = AutoConfig.from_pretrained(str(base.path), local_files_only=True, trust_remote_code=False)
    for name, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in name or name.endswith(("_drop", "_pdrop"))):
            setattr(config, name, model.dropout)
    config.pad_token_id = tokenizer.pad_token_id
    kind = AutoModelForCausalLM
    if head:
        kind = AutoModelForSequenceClassification
        config.num_labels = len(head.labels)
        config.id2label = dict(enumerate(head.labels))
        config.label2id = {label: number for number, label in enumerate(head.labels)}
        config.problem_type = "multi_label_classification" if head.multi_label else "single_label_classification"
    use_safetensors = any(base.path.glob("*.safetensors"))
    with _quiet():
        loaded, info = kind.from_pretrained(
            str(base.path),
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=use_safetensors,
            weights_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    return loaded, sorted(info["missing_keys"])


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers reports every new head as a table of missing weights; we check the missing ones ourselves."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def _adapter_config(bare: Any, family: Family, head: Head | None, lora: LoraConfig) -> PeftLoraConfig:
    targets = resolve_targets(bare, family, lora)
    return PeftLoraConfig(
        task_type="SEQ_CLS" if head else "CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=list(targets.names),
        exclude_modules=list(family.head_modules) if head else None,
        layers_to_transform=list(targets.layers) if targets.layers else None,
        layers_pattern=targets.layers_pattern if targets.layers else None,
        modules_to_save=list(family.head_modules) if head else None,
    )


def _load_adapter(adapted: PeftModel, folder: Path) -> None:
    state = load_file(str(folder / WEIGHTS))
    wanted = set(_state(adapted))
    lacking, extra = sorted(wanted - state.keys()), sorted(state.keys() - wanted)
    if lacking or extra:
        raise ArtifactError(
            f"{os.fspath(folder / WEIGHTS)}: lacks {lacking[:5] or 'nothing'}, has unknown {extra[:5] or 'nothing'}: not the adapter and head of {CONFIG}"
        )
    set_peft_model_state_dict(adapted, state)


def _state(adapted: PeftModel) -> dict[str, torch.Tensor]:
    """Adapter and head; asking PEFT whether embeddings changed would make it look for the base's config on the Hub."""
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return state
