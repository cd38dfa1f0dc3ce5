"""Fits the confidence of generated answers on one half of some rows, and measures it on the other.

`STUDY` is a study of the task `instruct` with `task.right_answer`; its first base model answers
untuned, or the checkpoint of `--checkpoint`. The rows are training rows of the study, without the
safety pairs, so a checkpoint must be trained on other rows. Each row is answered once; then many
random halves of the answers show how often a promised precision is kept."""

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
    options.add_argument("--halves", type=int, default=100)
    args = options.parse_args()
    logging.basicConfig(level=logging.ERROR)
    study = load_study([args.study], args.settings)
    config = study.trial(study.base_models[0])
    dataset = datasets.load(config.data)
    task, engine = study_model(args.checkpoint, config, dataset)
    rows = list(dataset.train[: args.rows])
    predictions = task.predict(engine, [row.without_answer() for row in rows])
    results = measure(task, predictions, rows, study.calibration, args.halves)
    promise = study.calibration.abstain_precision
    print(f"{len(rows)} rows, {args.halves} random halves; mean (middle 95 %)")
    for name, values in results.items():
        low, high = np.quantile(values, [0.025, 0.975])
        print(f"{name:18} {np.mean(values):.3f} ({low:.3f} to {high:.3f})")
    if promise is not None:
        num_kept = sum(value >= promise for value in results["answered_accuracy"])
        num_answering = len(results["answered_accuracy"])
        print(
            f"a precision of {promise} is promised with probability "
            f"{study.calibration.abstain_level}: {num_answering} halves answer, {num_kept} keep it"
        )


def measure(
    task: Task,
    predictions: list[Prediction],
    rows: list[Example],
    config: CalibrationConfig,
    num_halves: int,
) -> dict[str, list[float]]:
    """Return the figures of the second half of each random order, after a fit on the first."""
    assert isinstance(task, GradedTexts)
    assert isinstance(task, TallyTask)
    rng = np.random.default_rng(0)
    figures: dict[str, list[float]] = defaultdict(list)
    for _ in range(num_halves):
        order = rng.permutation(len(rows))
        first, second = np.split(order, [len(rows) // 2])
        own = [predictions[at] for at in first]
        right = task.grade(own, [rows[at] for at in first])
        record = text_calibration.fit(own, right, config)
        answers = calibrate(task, record, [predictions[at] for at in second])
        values = task.results(answers, [rows[at] for at in second]).whole()
        for name in FIGURES:
            if name in values:
                figures[name].append(values[name])
    return figures


if __name__ == "__main__":
    main()
