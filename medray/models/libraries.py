"""What medray uses of transformers and PEFT, imported without two packages that these import and a base in full precision never needs.

bitsandbytes and scikit-learn are a third of the seconds that importing them takes, in every worker, replica and command.
"""

from medray.imports import hidden, uncollected

with hidden("bitsandbytes", "sklearn"), uncollected():
    from peft import LoraConfig as PeftLoraConfig
    from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.import_utils import is_bnb_4bit_available, is_bnb_available
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import Linear as LoraLinear
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


def adapt(bare: object, config: PeftLoraConfig) -> PeftModel:
    """`get_peft_model`, which looks for layers of bitsandbytes only in a base that has them."""
    _forget_availability()
    try:
        with hidden(*(() if getattr(bare, "is_loaded_in_4bit", False) else ("bitsandbytes",))):
            return get_peft_model(bare, config)
    finally:
        _forget_availability()


def _forget_availability() -> None:
    """PEFT keeps what it was told; the next call is told anew."""
    is_bnb_available.cache_clear()
    is_bnb_4bit_available.cache_clear()


_forget_availability()
