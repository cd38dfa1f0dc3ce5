"""Imports transformers and PEFT for medray, without two packages that a model in full precision
never needs.

bitsandbytes and scikit-learn are a third of the time of this import, in every worker, replica and
command."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from medray.models.imports import hide_packages, without_garbage_collection

with hide_packages("bitsandbytes", "sklearn"), without_garbage_collection():
    from peft import LoraConfig as PeftLoraConfig
    from peft import (
        PeftConfig,
        PeftModel,
        get_peft_model,
        get_peft_model_state_dict,
        set_peft_model_state_dict,
    )
    from peft.import_utils import is_bnb_4bit_available, is_bnb_available
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora import model as lora_model
    from peft.tuners.lora.layer import Linear as LoraLinear
    from peft.utils import quantization_utils
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
    )
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.utils import logging as transformers_logging

__all__ = [
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoConfig",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoTokenizer",
    "LoraLayer",
    "LoraLinear",
    "PeftConfig",
    "PeftLoraConfig",
    "PeftModel",
    "adapt",
    "base_of",
    "get_peft_model_state_dict",
    "quiet",
    "set_peft_model_state_dict",
]


_adapting = Lock()
_KERNELS = logging.getLogger("bitsandbytes.backends.cpu.ops")


def adapt(network: object, config: PeftLoraConfig) -> PeftModel:
    """Call `get_peft_model`, without importing bitsandbytes where the base model has no layers of
    it."""
    with _adapting:
        if getattr(network, "is_loaded_in_4bit", False):
            return get_peft_model(network, config)
        switches = [
            (module, name)
            for module in (lora_model, quantization_utils)
            for name in ("is_bnb_available", "is_bnb_4bit_available")
        ]
        before = [getattr(module, name) for module, name in switches]
        try:
            for module, name in switches:
                setattr(module, name, lambda: False)
            return get_peft_model(network, config)
        finally:
            for (module, name), switch in zip(switches, before, strict=True):
                setattr(module, name, switch)


# Both functions cache that bitsandbytes was hidden during the import of PEFT.
is_bnb_available.cache_clear()
is_bnb_4bit_available.cache_clear()


def base_of(model: Any) -> Any:
    """Return the network that a PeftModel wraps, or the model itself without an adapter."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def quiet() -> Iterator[None]:
    """Hide progress bars, the table of missing weights, which medray checks itself, and the advice
    to install a kernel."""
    level, bars = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    _KERNELS.addFilter(_is_relevant)
    try:
        yield
    finally:
        _KERNELS.removeFilter(_is_relevant)
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _is_relevant(record: logging.LogRecord) -> bool:
    """Return False for the advice of bitsandbytes 0.50 to install a kernel of the Hub, which medray
    never calls."""
    return "gemm_4bit_forward" not in str(record.msg)
