"""What the benches count with: the replay of a search over stored histories, and means over
seeds."""

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

from support import run_files, tiny

from medray.records import Evaluation
from medray.study.search import Search

BENCH = Path(__file__).parents[1] / "jobs" / "bench"
RATES = "search.space={train.learning_rate: {grid: [0.1, 0.2, 0.3]}}"
FIGURES = {0.1: [0.5, 0.6, 0.7], 0.2: [0.4, 0.9, 0.9], 0.3: [0.6, 0.5, 0.8]}


def history(settings: dict[str, Any]) -> list[Evaluation]:
    rows = run_files.history(FIGURES[settings["train.learning_rate"]], 0)
    values = FIGURES[settings["train.learning_rate"]]
    return [
        replace(row, metrics={"f1_macro": value}) for row, value in zip(rows, values, strict=True)
    ]


def test_a_replay_counts_the_epochs_and_the_time_of_a_search_and_finds_its_winner(
    tmp_path: Path,
) -> None:
    replay = runpy.run_path(str(BENCH / "replay.py"))["replay"]

    def run(num_slots: int, *settings: str) -> tuple[float, float, float, int]:
        search = Search(tiny.study(tmp_path, RATES, *settings), "f1_macro")
        result = replay(search, history, num_slots=num_slots)
        return (
            result.epochs,
            result.duration,
            result.winner["train.learning_rate"],
            result.best.epoch,
        )

    assert run(1) == (9, 9, 0.2, 2)
    assert run(3) == (9, 3, 0.2, 2)
    # The second trial is stopped after its first epoch, and the best figure is never seen.
    assert run(1, "search.scheduler=asha") == (7, 7, 0.3, 3)
    assert run(2, "search.scheduler=asha") == (7, 4, 0.3, 3)


def test_a_mean_over_seeds_has_the_interval_of_students_t() -> None:
    mean_with_interval = runpy.run_path(str(BENCH / "seeds.py"))["mean_with_interval"]
    assert mean_with_interval([1, 2, 3]) == "+2.00 (95 % interval -0.48 to +4.48)"
    assert mean_with_interval([-0.5]) == "-0.50"
