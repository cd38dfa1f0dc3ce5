"""Compares one GPU with the CPU, and with transformers' Trainer + PEFT, in three parts of at most
nine minutes each. It needs no Ray, no network and no model: base models have random weights.

`correctness` compares losses, 4 bits, reloads, merges, texts and a resume. `speed` measures
tokens/s, MFU, memory and idle time. `sharing` measures 1, 2, 4 and 8 trials on the GPU, heads, and
generated texts.

Each part adds its rows to `--output` (gpu.json) and prints a table. An arm that fails is a row with
its error, and an arm that runs again replaces its row. Without a GPU, shapes are tiny.
`--device-in-name` runs a part on the CUDA device in name that the tests use, which computes on the
CPU.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
PART_S = 540.0


class Results:
    """The rows of a part. Each is stored as soon as it is known."""

    def __init__(self, path: Path, part: str, limit_s: float) -> None:
        self.path, self.part, self.end = path, part, time.monotonic() + limit_s
        rows = json.loads(path.read_text()) if path.is_file() else []
        self.others = [row for row in rows if row["part"] != part]
        self.rows: list[dict[str, Any]] = [row for row in rows if row["part"] == part]

    def run(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Measure an arm, and return its row."""
        import torch

        row: dict[str, Any] = {"part": self.part, "name": name}
        start = time.monotonic()
        if start > self.end:
            row["error"] = "the time of this part is over"
        else:
            try:
                row |= measure()
            except Exception as err:  # a failure is a finding, and the other arms run
                row["error"] = f"{type(err).__name__}: {str(err)[:400]}"
            row["seconds"] = round(time.monotonic() - start, 1)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self._replace(row)
        self.path.write_text(json.dumps([*self.others, *self.rows], indent=1) + "\n")
        print(f"{self.part}: {render(row)}", flush=True)
        return row

    def _replace(self, row: dict[str, Any]) -> None:
        names = [each["name"] for each in self.rows]
        if row["name"] in names:
            self.rows[names.index(row["name"])] = row
        else:
            self.rows.append(row)

    @property
    def num_failures(self) -> int:
        return sum("error" in row or row.get("is_right") is False for row in self.rows)

    def table(self) -> str:
        lines = ["| arm | figures |", "| --- | --- |"]
        for row in self.rows:
            figures = render({key: value for key, value in row.items() if key != "name"})
            lines.append(f"| {row['name']} | {figures} |")
        return "\n".join(lines)


def render(row: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in row.items()
        if key != "part"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("correctness", "speed", "sharing"))
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--shapes", nargs="+", help="of the base models, in this order")
    parser.add_argument("--steps", type=int, default=8, help="of an arm")
    parser.add_argument("--only", default="", help="run the arms whose names contain this")
    parser.add_argument("--limit-s", type=float, default=PART_S, help="no arm starts after it")
    parser.add_argument("--device-in-name", action="store_true")
    parser.add_argument("--trial", nargs=6, help=argparse.SUPPRESS)  # of several in processes
    args = parser.parse_args()
    results = Results(args.output, args.part, args.limit_s)
    with ExitStack() as stack:
        if args.device_in_name:
            from support import cuda_library

            cuda_library.load()  # before torch is imported
            from support.pretend_cuda import pretend

            stack.enter_context(pretend())
        if args.part == "correctness":
            from gpu_correctness import measure
        elif args.part == "speed":
            from gpu_speed import measure
        else:
            from gpu_sharing import measure, run_trial

            if args.trial:
                run_trial(*args.trial)
                return 0
        measure(results, args)
    print(results.table())
    return min(1, results.num_failures)


if __name__ == "__main__":
    sys.exit(main())
