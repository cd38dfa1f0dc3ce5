"""Prints what `medray plan` says of the studies of the five documents on GPUs of several sizes:
"yes" where a base model fits, else the settings with which it would. No weight is read."""

import argparse
from pathlib import Path

from medray.config.load import load_study
from medray.runtime.cluster import Cluster, Node
from medray.study.estimate import Speed, StudyEstimate, estimate
from medray.study.gpus import USABLE

STUDIES = Path(__file__).parents[1] / "studies"
SIZES_GB = (24, 40, 80, 141)
CLUSTER = Cluster((Node(64, 8),), None, is_joined=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", nargs="+", type=Path, default=sorted(STUDIES.glob("seed_*")))
    parser.add_argument("--rows", type=int, default=1000, help="training rows of full length")
    args = parser.parse_args()
    sizes = " | ".join(f"{size} GB" for size in SIZES_GB)
    print(f"| study | base model | GB per worker | {sizes} |")
    print("|" + " --- |" * (3 + len(SIZES_GB)))
    for path in args.studies:
        print("\n".join(rows(path, args.rows)), flush=True)


def rows(path: Path, num_rows: int) -> list[str]:
    def plan(size_gb: int) -> StudyEstimate:
        return estimate(
            load_study([path]),
            CLUSTER,
            memory_bytes=int(size_gb * 1e9),
            speed=Speed(tokens_per_s=1000),
            num_rows=num_rows,
        )

    largest = plan(SIZES_GB[-1])
    plans = {SIZES_GB[-1]: largest}
    for size in SIZES_GB[:-1]:
        # A plan measures steps again, so ask only where an answer can differ.
        fits = all(base.worker_bytes <= USABLE * size * 1e9 for base in largest.bases)
        plans[size] = largest if fits else plan(size)
    lines = []
    for number, base in enumerate(largest.bases):
        cells = []
        for size in SIZES_GB:
            entry = plans[size].bases[number]
            cells.append("yes" if entry.fits else entry.notes[-1])
        figures = f"{base.worker_bytes / 1e9:.1f}"
        lines.append(f"| {path.stem} | {base.source} | {figures} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
