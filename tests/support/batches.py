"""Releases of each task and rows for batch prediction."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import tiny

from medray import cli
from medray.registry.registry import Registry

STUDIES: dict[str, Callable[..., Any]] = {
    "cancer": tiny.study,
    "triage": tiny.choice_study,
    "answers": tiny.instruct_study,
    "tags": lambda place, *settings: tiny.mention_study(
        place, "{name: tagging, max_length: 64}", *settings
    ),
    "mentions": lambda place, *settings: tiny.mention_study(
        place, "{name: extraction, max_length: 100, max_answer: 40}", *settings, family="llama"
    ),
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage path with a release of each task."""
    folder = tmp_path_factory.mktemp("released")
    registry = Registry(str(folder / "runs"))
    for name, make in STUDIES.items():
        (place := folder / name).mkdir()
        registry.publish(tiny.trial(make(place, "train.epochs=1"), place).run().checkpoint, name)
    return folder / "runs"


def write_rows(path: Path, num_rows: int) -> list[dict[str, str]]:
    rng = random.Random(7)
    inputs = [
        {"id": f"r{number}", "text": tiny.text(rng, rng.randint(3, 20))}
        for number in range(num_rows)
    ]
    pq.write_table(pa.Table.from_pylist(inputs), path)
    return inputs


def predict(runs: Path, reference: str, source: Path, output: Path, *options: str) -> int:
    """Predict on Ray, since the number of actors is given."""
    return predict_here(runs, reference, source, output, "--actors", "2", *options)


def predict_here(runs: Path, reference: str, source: Path, output: Path, *options: str) -> int:
    where = ["--input", str(source), "--output", str(output), "--storage-path", str(runs)]
    return cli.main(["predict", reference, *where, "--precision", "fp32", *options])


def answers_of(output: Path) -> dict[str, dict[str, Any]]:
    return {
        row["id"]: row
        for path in output.glob("part-*.jsonl")
        for row in map(json.loads, path.read_text().splitlines())
    }
