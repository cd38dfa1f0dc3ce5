"""Names of settings that other training tools use, and what to write here instead."""

from collections.abc import Mapping

_BASE_MODELS = "base_models: [{source: NAME}] in the YAML"
_FORMAT = "data.format={name: delimited, path: FILE}; `medray init FILE` writes it"
_STEP = "train.samples_per_step=16, the rows per optimizer step"
_TOKENS = "train.token_budget=4096, the tokens per forward pass"
_ADVICE = {
    _BASE_MODELS: "model_name model_id model_name_or_path base_model base_models "
    "pretrained_model_name_or_path model model.name model.source model.path base_models.name",
    _FORMAT: "dataset dataset_name data_path train_file data.path data.file",
    _STEP: "batch_size train_batch_size global_batch_size effective_batch_size",
    f"{_TOKENS}, and {_STEP}": "per_device_train_batch_size micro_batch_size "
    "gradient_accumulation_steps",
    _TOKENS: "per_device_eval_batch_size eval_batch_size",
    "train.epochs=3": "num_epochs num_train_epochs n_epochs max_epochs",
    "train.learning_rate=1e-4": "lr",
    "train.schedule=cosine": "lr_scheduler lr_scheduler_type scheduler_type",
    "train.warmup_ratio=0.1": "warmup warmup_proportion",
    "train.patience=3": "early_stopping early_stopping_patience",
    "train.evaluate_every_steps=100": "eval_steps evaluation_strategy eval_strategy",
    "train.state_every_steps=100": "save_steps save_strategy",
    "train.log_every_steps=10": "logging_steps",
    "model.precision=bf16": "bf16 fp16 torch_dtype bnb_4bit_compute_dtype",
    "model.quantization=nf4": "load_in_4bit load_in_8bit bits qlora bnb_4bit_quant_type",
    "model.double_quantization=true": "bnb_4bit_use_double_quant",
    "lora.r=16": "lora_r lora_rank rank",
    "lora.alpha=32": "lora_alpha",
    "lora.dropout=0.05": "lora_dropout",
    "lora.targets=[q_proj, v_proj]": "target_modules lora_target lora_targets lora_target_modules",
    "lora.rslora=true": "use_rslora",
    "task.max_length=512": "max_seq_length max_seq_len seq_length cutoff_len model_max_length",
    "search.num_trials=20": "n_trials num_samples",
    "storage_path=runs": "output_dir output_path",
}
# A key, or a dotted key where its last word alone has another meaning.
FAMILIAR: Mapping[str, str] = {
    key: advice for advice, keys in _ADVICE.items() for key in keys.split()
}
