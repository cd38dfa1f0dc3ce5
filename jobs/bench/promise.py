"""Measures how often a threshold of abstention keeps its promised precision.

Without a release, scores are simulated: calibrated ones, and ones that are twice as sure as they
should be. Each seed draws validation rows, fits temperature and thresholds, and takes the expected
precision on 2,000 fresh rows, from the true probability of each answer. With `RELEASE STUDY`, the
release predicts the study's validation and test rows once. Each seed then splits these rows into
halves: one fits, the other tests. A threshold is refuted if its test half excludes the promise with
95 % (an exact bound)."""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medray.config.load import load_study
from medray.config.study import CalibrationConfig
from medray.evaluation import answer_calibration
from medray.evaluation.bootstrap import share_bound
from medray.evaluation.calibration import calibrate
from medray.tasks.base.protocol import Task
from medray.tasks.decisions import task as decisions
from medray.types import Example, Floats, Prediction, Question, QuestionAnswer, QuestionOption

OPTIONS, NUM_FRESH = ("a", "b", "c"), 2_000
QUESTIONS = tuple(
    Question(name, "choice", "Which?", tuple(map(QuestionOption, OPTIONS)))
    for name in ("one", "two", "three", "four", "five")
)
Rows = tuple[Sequence[Example], Sequence[Prediction]]


@dataclass
class Promise:
    """Counts of thresholds over seeds and questions."""

    num_rules: int = 0
    num_kept: int = 0
    num_refuted: int = 0
    coverage: list[float] = field(default_factory=list)

    def add(self, right: float, total: int, num_rows: int, precision: float) -> None:
        self.coverage.append(total / num_rows)
        if total:
            self.num_rules += 1
            self.num_kept += right / total >= precision
            most = 1 - share_bound(total - round(right), total, level=0.95)
            self.num_refuted += most < precision

    def sentence(self, config: CalibrationConfig) -> str:
        count = self.num_rules
        return (
            f"{count} of {len(self.coverage)} thresholds answer, {np.mean(self.coverage):.2f} of "
            f"the rows; precision {config.abstain_precision} kept by {self.num_kept} "
            f"({self.num_kept / max(count, 1):.2f}), promised {config.abstain_level}; "
            f"refuted: {self.num_refuted}"
        )


def simulate(
    rng: np.random.Generator, num_rows: int, steepness: float, *, is_soft: bool = False
) -> Rows:
    """Draw right answers from logits, and predictions whose logits are as many times as steep. Soft
    answers are the probabilities themselves."""
    logits = rng.normal(0, 3, (num_rows, len(QUESTIONS), len(OPTIONS)))
    truth = logits + rng.gumbel(size=logits.shape)
    examples, predictions = [], []
    for row in range(num_rows):
        hard = np.eye(len(OPTIONS))[truth[row].argmax(axis=1)]
        right = softmax(logits[row]) if is_soft else hard
        answers = tuple(map(tuple, right.tolist()))
        examples.append(Example(str(row), "", questions=QUESTIONS, answers=answers))
        shares = softmax(steepness * logits[row]).tolist()
        own = tuple(
            QuestionAnswer(question.name, question.kind, OPTIONS, tuple(values))
            for question, values in zip(QUESTIONS, shares, strict=True)
        )
        predictions.append(Prediction(str(row), (), (), answers=own))
    return examples, predictions


def softmax(logits: Floats) -> Floats:
    shares: Floats = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    return shares


def check(task: Task, config: CalibrationConfig, fit: Rows, test: Rows, promise: Promise) -> None:
    """Fit on some rows, and count right answers on others."""
    record = answer_calibration.fit(fit[1], fit[0], config)
    counts: dict[str, list[float]] = defaultdict(list)
    num_rows: dict[str, int] = defaultdict(int)
    for example, row in zip(test[0], calibrate(task, record, test[1]), strict=True):
        for shares, answer in zip(example.answers, row.answers, strict=True):
            if not shares:
                continue
            num_rows[answer.name] += 1
            if not answer.abstained:
                counts[answer.name].append(shares[answer.values.index(answer.value)])
    assert config.abstain_precision is not None
    for name, total in num_rows.items():
        own = counts[name]
        promise.add(sum(own), len(own), total, config.abstain_precision)


def halves(rows: Rows, num_seeds: int) -> Iterator[tuple[Rows, Rows]]:
    examples, predictions = rows
    for seed in range(num_seeds):
        order = np.random.default_rng(seed).permutation(len(examples)).tolist()
        middle = len(order) // 2
        one, two = (
            ([examples[at] for at in part], [predictions[at] for at in part])
            for part in (order[:middle], order[middle:])
        )
        yield one, two


def real_rows(release: str, study_file: str, storage_path: str | None) -> tuple[Task, Rows]:
    """Predict validation and test rows before calibration."""
    from medray.data import dataset as datasets
    from medray.registry.registry import Registry

    study = load_study([study_file])
    rows = datasets.load(study.data)
    model = Registry(storage_path or study.storage_path).resolve(release).load()
    with tempfile.TemporaryDirectory() as folder:
        test = rows.open_test(Path(folder), "bench").examples
    task = model.task
    assert isinstance(task, decisions.Task)
    examples = task.with_answers([*rows.validation, *test])
    inputs = [example.without_answer() for example in examples]
    return task, (examples, task.predict(model.engine, inputs))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release", nargs="?")
    parser.add_argument("study", nargs="?")
    parser.add_argument("--storage-path")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rows", type=int, default=200, help="validation rows of a simulation")
    parser.add_argument("--precision", type=float, default=0.9)
    parser.add_argument("--level", type=float, default=0.8)
    args = parser.parse_args()
    config = CalibrationConfig(abstain_precision=args.precision, abstain_level=args.level)
    if args.release:
        promise = Promise()
        task, rows = real_rows(args.release, args.study, args.storage_path)
        for fit, test in halves(rows, args.seeds):
            check(task, config, fit, test, promise)
        print(f"{args.release}, {len(rows[0])} rows: {promise.sentence(config)}")
        return
    simulation_task = decisions.Task(decisions.Options(name="decisions"), QUESTIONS)
    for steepness in (1.0, 2.0):
        promise = Promise()
        for seed in range(args.seeds):
            rng = np.random.default_rng(seed)
            fit = simulate(rng, args.rows, steepness)
            fresh = simulate(rng, NUM_FRESH, steepness, is_soft=True)
            check(simulation_task, config, fit, fresh, promise)
        print(f"scores {steepness:g} times as steep: {promise.sentence(config)}", flush=True)


if __name__ == "__main__":
    main()
