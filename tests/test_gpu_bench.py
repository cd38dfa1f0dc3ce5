"""The parts of the bench of a GPU run on the CPU, with tiny shapes."""

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medray.training.loop import Loop
from medray.training.plan import MicroBatch

BENCH = Path(__file__).parents[1] / "jobs" / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu

    return gpu


def options(only: str) -> argparse.Namespace:
    return argparse.Namespace(only=only, shapes=None, steps=2)


@pytest.mark.parametrize("only", ["classification bert", "codes", "resume", "texts"])
def test_the_first_part_finds_that_the_cpu_computes_what_the_cpu_computes(
    bench: Any, tmp_path: Path, only: str
) -> None:
    import gpu_correctness

    results = bench.Results(tmp_path / "gpu.json", "correctness", 3600)
    gpu_correctness.measure(results, options(only))
    rows = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["part"] for row in rows] == ["correctness"] * len(results.rows)
    assert rows
    assert all(row["is_right"] for row in rows), rows
    assert all(row["difference"] == 0 for row in rows if "difference" in row)
    assert results.num_failures == 0
    assert all(f"| {row['name']} |" in results.table() for row in rows)


def test_a_step_that_runs_out_of_memory_is_repeated_in_parts(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory is one of figures: a model has 100 bytes, and a micro-batch 200 more."""
    import gpu_correctness

    shares, loss = [1.0], Loop.loss

    def loss_within_limit(loop: Loop, batch: MicroBatch) -> Any:
        if shares[-1] < 1 and len(batch.rows) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss(loop, batch)

    for name, value in {
        "memory_allocated": 100,
        "max_memory_allocated": 300,
        "reset_peak_memory_stats": None,
        "get_device_properties": SimpleNamespace(total_memory=1000),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *arguments, value=value: value)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    monkeypatch.setattr(Loop, "loss", loss_within_limit)
    monkeypatch.setattr(gpu_correctness, "SHAPE_OF_LIMIT", ("tiny", 20))
    monkeypatch.setattr(gpu_correctness, "has_gpu", lambda: True)
    row = bench.Results(tmp_path / "gpu.json", "correctness", 3600).run("", gpu_correctness.halve)
    assert row["is_right"], row
    assert row["budget_after"] < row["budget"] == 8192
    assert shares[1:] == [0.2, 1.0]


def test_a_wrong_figure_an_error_and_an_end_of_time_are_rows_and_count_as_failures(
    bench: Any, tmp_path: Path
) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(
        json.dumps([{"part": "speed", "name": "before"}, {"part": "x", "name": "wrong"}])
    )

    def fail() -> dict[str, Any]:
        raise ValueError("out of luck")

    results = bench.Results(path, "x", 3600)
    results.run("wrong", lambda: {"is_right": False})
    results.run("error", fail)
    results.end = 0.0
    results.run("late", lambda: {"is_right": True})
    rows = json.loads(path.read_text())
    assert [row["name"] for row in rows] == ["before", "wrong", "error", "late"]
    assert rows[1]["is_right"] is False, "an arm that runs again replaces its row"
    assert rows[2]["error"] == "ValueError: out of luck"
    assert rows[3]["error"] == "the time of this part is over"
    assert results.num_failures == 3


@pytest.mark.slow
@pytest.mark.parametrize("part", ["speed", "sharing"])
def test_the_other_parts_run_from_end_to_end(
    bench: Any, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", part, "--output", str(path), "--steps", "2"])
    assert bench.main() == 0
    rows = json.loads(path.read_text())
    figures = [row.get("tokens_per_s") for row in rows if "trial" in row["name"] or part == "speed"]
    assert any(figures)
