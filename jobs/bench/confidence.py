"""Fits the confidence of generated answers on random draws of some rows, and measures it on all.

`STUDY` is a study of the task `instruct` with `task.right_answer`; its first base model answers
untuned, or the checkpoint of `--checkpoint`. The rows are training rows of the study, without the
safety pairs, so a checkpoint must be trained on other rows. Each row is answered once. Then all
answers stand for a population of which the right ones are known. Draws of half as many rows, with
replacement, show how often a promised precision is kept there."""

import logging
from collections import defaultdict

import numpy as np
from study_model import parser, study_model

from medray.config.load import load_study
from medray.config.study import CalibrationConfig
from medray.data import dataset as datasets
from medray.evaluation import text_calibration
from medray.evaluation.calibration import calibrate
from medray.tasks.base.protocol import GradedTexts, TallyTask, Task
from medray.types import Example, Prediction

FIGURES = ("accuracy", "ece", "coverage", "answered_accuracy")


def main() -> None:
    options = parser(__doc__, num_rows=160)
    options.add_argument("--draws", type=int, default=200)
    args = options.parse_args()
    logging.basicConfig(level=logging.ERROR)
    study = load_study([args.study], args.settings)
    config = study.trial(study.base_models[0])
    dataset = datasets.load(config.data)
    task, engine = study_model(args.checkpoint, config, dataset)
    rows = list(dataset.train[: args.rows])
    predictions = task.predict(engine, [row.without_answer() for row in rows])
    show(measure(task, predictions, rows, study.calibration, args.draws), study.calibration)


def measure(
    task: Task,
    predictions: list[Prediction],
    rows: list[Example],
    config: CalibrationConfig,
    num_draws: int,
) -> dict[str, list[float]]:
    """Return the figures of all rows after a fit on each draw."""
    assert isinstance(task, GradedTexts)
    assert isinstance(task, TallyTask)
    rng = np.random.default_rng(0)
    figures: dict[str, list[float]] = defaultdict(list)
    right = np.array(task.grade(predictions, rows))
    for _ in range(num_draws):
        draw = rng.integers(len(rows), size=len(rows) // 2)
        record = text_calibration.fit([predictions[at] for at in draw], right[draw], config)
        values = task.results(calibrate(task, record, predictions), rows).whole()
        for name in FIGURES:
            if name in values:
                figures[name].append(values[name])
    return figures


def show(figures: dict[str, list[float]], config: CalibrationConfig) -> None:
    num_draws = len(figures["accuracy"])
    print(f"{num_draws} draws; mean (middle 95 %)")
    for name, values in figures.items():
        low, high = np.quantile(values, [0.025, 0.975])
        print(f"{name:18} {np.mean(values):.3f} ({low:.3f} to {high:.3f})")
    if config.abstain_precision is not None:
        answering = figures["answered_accuracy"]
        num_broken = sum(value < config.abstain_precision for value in answering)
        print(
            f"precision {config.abstain_precision}: {len(answering)} draws answer, {num_broken} "
            f"break it ({num_broken / num_draws:.2f} of all draws; promised at most "
            f"{1 - config.abstain_level:.2f})"
        )


if __name__ == "__main__":
    main()
