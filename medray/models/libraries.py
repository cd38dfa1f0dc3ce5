"""What medray uses of transformers and PEFT, imported without two packages that these import and a base in full precision never needs.

bitsandbytes and scikit-learn are a third of the seconds that importing them takes, in every worker, replica and command.
"""

from threading import Lock

from medray.models.imports import hidden, uncollected

with hidden("bitsandbytes", "sklearn"), uncollected():
    from peft import LoraConfig as PeftLoraConfig
    from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
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

__all__ = [
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
    "get_peft_model_state_dict",
    "set_peft_model_state_dict",
]


_adapting = Lock()


def adapt(bare: object, config: PeftLoraConfig) -> PeftModel:
    """`get_peft_model`, which imports bitsandbytes to look for its layers, in a base that has none of them without that."""
    with _adapting:
        if getattr(bare, "is_loaded_in_4bit", False):
            return get_peft_model(bare, config)
        switches = [(module, name) for module in (lora_model, quantization_utils) for name in ("is_bnb_available", "is_bnb_4bit_available")]
        before = [getattr(module, name) for module, name in switches]
        try:
            for module, name in switches:
                setattr(module, name, lambda: False)
            return get_peft_model(bare, config)
        finally:
            for (module, name), switch in zip(switches, before, strict=True):
                setattr(module, name, switch)


# What they were told while they were imported is forgotten.
is_bnb_available.cache_clear()
is_bnb_4bit_available.cache_clear()
