"""A study on a cluster of three raylets, of which the head offers no CPU: over several nodes it finds what one finds."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos import Figures, Study, figures, write_study
from raylets import Raylets, raylets

from medray import checkpoint
from medray.registry import Registry
from medray.tuning.runs import Run, latest

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(900)]
EXACT = ("lora.dropout=0.0", "publish={name: cancer}")  # each worker would draw its own dropout
SPREAD = "resources={num_workers: 2, placement: spread, cpus_per_worker: 1}"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Raylets]:
    with raylets(3, cpus=2, of_head=0) as started:
        yield started


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    folder = tmp_path_factory.mktemp("alone")
    done = Study(write_study(folder, *EXACT)).end()
    assert done.status == 0, done.output
    return figures(latest(folder / "runs" / "tiny"))


def agree(run: Run, alone: Figures) -> None:
    """The same F1 at every evaluation, the best one's too; losses as near as 240 steps of sums in another order leave them."""
    found = figures(run)
    f1 = {trial: [row[2] for row in rows] for trial, rows in found.items()}
    print(f"best F1 {[round(max(values), 4) for values in f1.values()]}")
    assert f1 == {trial: [row[2] for row in rows] for trial, rows in alone.items()}
    for trial, rows in alone.items():
        assert [row[1] for row in found[trial]] == pytest.approx([row[1] for row in rows], abs=1e-4)


def placed(run: Run) -> dict[str, list[list[str]]]:
    """The nodes of each trial's workers, once for each time that it started."""
    logs = {record.trial: (run.trial_dir(record.trial) / "log.txt").read_text() for record in run.records()}
    return {trial: [nodes.split(", ") for nodes in re.findall(r"worker\(s\) on (.*)", log)] for trial, log in logs.items()}


def everything_is_whole(run: Run) -> None:
    """No checkpoint and no release is half there: every file has the hash that its manifest says."""
    assert Registry(str(run.storage_dir)).names() == ["cancer"]
    release = Registry(str(run.storage_dir)).resolve("cancer@best")
    assert release.record.version == 1
    checkpoint.verify(release.folder(), expected=release.record.content_id)
    for folder in (run.folder / "trials").glob("*/checkpoints/step-*"):
        checkpoint.verify(folder)


def test_workers_spread_over_two_nodes_find_what_one_node_finds(nodes: Raylets, tmp_path: Path, alone: Figures) -> None:
    start = time.monotonic()
    done = Study(write_study(tmp_path, *EXACT, SPREAD), joined=nodes.joined).end()
    assert done.status == 0, done.output
    run = latest(tmp_path / "runs" / "tiny")
    print(f"{time.monotonic() - start:.0f} s")
    agree(run, alone)
    both = [nodes.address(1), nodes.address(2)]
    assert {trial: [sorted(found) for found in times] for trial, times in placed(run).items()} == {trial: [both] for trial in alone}
    everything_is_whole(run)
