"""Compares heads that read a token with heads that read the mean of all tokens, and both with the
baselines of a study, over seeds of split and training.

Every model has the study's first base model and its fixed settings; nothing is searched but the
baselines. Test rows are those of each seed's split. `STUDY` is a study of the task
`classification`; settings such as `data.limit=200` make it smaller."""

import argparse
import logging
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seeds import mean_with_interval

from medray.config.load import load_study
from medray.config.study import StudyConfig
from medray.data.dataset import Dataset
from medray.evaluation import bootstrap, leaderboard
from medray.evaluation.bootstrap import Comparison
from medray.evaluation.leaderboard import Contender, Entry
from medray.registry.loading import load
from medray.registry.predictions import read_predictions
from medray.runtime.cluster import Cluster, Node
from medray.study import references
from medray.study.candidates import Candidate, predict_with_time
from medray.study.final_test import LabeledRows
from medray.study.materials import Materials
from medray.study.placement import Placement, place
from medray.tasks.base import protocol as tasks
from medray.training.material import gather
from medray.training.trial import Trial

POOLINGS = ("token", "mean")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", help="a YAML file")
    parser.add_argument("settings", nargs="*", help="key=value")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    figures: dict[str, list[float]] = defaultdict(list)
    differences: dict[str, list[float]] = defaultdict(list)
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            seeds = (f"seed={seed}", f"data.split.seed={seed}", f"storage_path={folder}")
            study = load_study([args.study], [*args.settings, *seeds])
            metric, contenders = test(study, Path(folder))
        for entry in (contender.entry for contender in contenders):
            spread = entry.test_interval
            interval = f" [{spread.low:.3f} to {spread.high:.3f}]" if spread else ""
            figures[entry.name].append(entry.test[metric])
            print(
                f"seed {seed}  {entry.name:50} validation {metric} "
                f"{entry.validation[metric]:.4f}  test {entry.test[metric]:.4f}{interval}",
                flush=True,
            )
        for name, pair in compare(contenders, metric).items():
            differences[name].append(100 * pair.difference)
            print(
                f"seed {seed}  {name:50} {100 * pair.difference:+.2f} points of test {metric} "
                f"[{100 * pair.low:+.2f} to {100 * pair.high:+.2f}]",
                flush=True,
            )
    print(f"\ntest figures of {args.seeds} seed(s): mean (lowest to highest)")
    for name, values in figures.items():
        mean = statistics.mean(values)
        print(f"{name:50} {mean:.4f} ({min(values):.4f} to {max(values):.4f})")
    print("\npoints of the test figure, one minus the other with the same seed: mean")
    for name, values in differences.items():
        print(f"{name:50} {mean_with_interval(values)}")


def compare(contenders: Sequence[Contender], metric: str) -> dict[str, Comparison]:
    """Compare the two heads, and each with the best baseline on validation rows, on the same test
    rows."""
    baselines = [one.entry for one in contenders if one.entry.kind == "reference"]
    name = leaderboard.rank(baselines, metric)[0].name
    best = next(one.test for one in contenders if one.entry.name == name)
    token, mean = (one.test for one in contenders if one.entry.kind == "trial")
    return {
        "mean - token": bootstrap.compare(mean, token, metric),
        "token - best baseline": bootstrap.compare(token, best, metric),
        "mean - best baseline": bootstrap.compare(mean, best, metric),
    }


def test(study: StudyConfig, folder: Path) -> tuple[str, list[Contender]]:
    """Return the metric, and models and baselines with their figures on a split's test rows."""
    materials = Materials(study, folder / "prepared", lambda audit: None)
    dataset, task = materials.dataset(study.data), materials.task
    test_rows, metric = dataset.unlabelled_test(), task.options.metric
    configs = [study.trial(base) for base in study.base_models]
    cluster = Cluster((Node(cpus=1, gpus=0),), dashboard=None, is_joined=False)
    placement = place(configs[0].resources, cluster, 1)
    encoder = references.frozen_encoder(configs, task, placement, call)
    candidates = references.baseline_candidates(task, dataset, test_rows, encoder)
    candidates += [train(study, dataset, folder, pooling) for pooling in POOLINGS]
    rows = LabeledRows(list(dataset.validation), list(dataset.open_test(folder, "bench").examples))
    return metric, [rows.score(candidate, metric) for candidate in candidates]


def train(study: StudyConfig, dataset: Dataset, folder: Path, pooling: str) -> Candidate:
    """Train one model and return its predictions at its best epoch."""
    base = study.base_models[0]
    config = study.trial(base, {"task.pooling": pooling})
    task = tasks.fit(config.task, dataset.label_sets(), dataset.train)
    material = gather(config, dataset, task, folder / "prepared")
    checkpoint = Trial(config, material, folder / pooling, lambda report: None).run().checkpoint
    release = load(checkpoint)
    predictions, seconds = predict_with_time(
        release.task, release.engine, dataset.unlabelled_test()
    )
    return Candidate(
        Entry(f"{base.source}, {pooling}", "trial", base_model=base.source),
        release.task,
        read_predictions(checkpoint),
        predictions,
        1000 * seconds / len(predictions),
    )


def call(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], placement: Placement
) -> list[Any]:
    return [function(*values) for values in arguments]


if __name__ == "__main__":
    main()
