"""Studies on a cluster of three raylets. Several nodes give the results of one, and a node may die.
The head offers no CPU."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import tiny
from support.chaos import Figures, Study, epochs_trained_twice, figures, write_study
from support.raylets import Raylets, raylets

from medray.config.load import dump_settings
from medray.registry.registry import Registry
from medray.storage import checkpoint
from medray.study.run import Run, latest

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(900)]
EXACT = (
    "lora.dropout=0.0",
    "publish={name: cancer, allow_worse: true}",
)  # each worker would draw its own dropout
SPREAD = "resources={num_workers: 2, placement: spread, cpus_per_worker: 1}"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Raylets]:
    with raylets(3, cpus=2, of_head=0) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    folder = tmp_path_factory.mktemp("alone")
    end = Study(write_study(folder, *EXACT)).end()
    assert end.status == 0, end.output
    return figures(latest(folder / "runs" / "tiny"))


def agree(run: Run, alone: Figures) -> None:
    """The same F1 at every evaluation, the best one's too; losses as near as 240 steps of sums in
    another order leave them."""
    nodes_of = figures(run)
    f1 = {trial: [row[2] for row in rows] for trial, rows in nodes_of.items()}
    print(f"best F1 {[round(max(values), 4) for values in f1.values()]}")
    assert f1 == {trial: [row[2] for row in rows] for trial, rows in alone.items()}
    for trial, rows in alone.items():
        assert [row[1] for row in nodes_of[trial]] == pytest.approx(
            [row[1] for row in rows], abs=1e-4
        )


def placements(run: Run) -> dict[str, list[list[str]]]:
    """The nodes of each trial's workers, once for each time that it started."""
    logs = {
        record.trial: (run.trial_dir(record.trial) / "log.txt").read_text()
        for record in run.records()
    }
    return {
        trial: [nodes.split(", ") for nodes in re.findall(r"worker\(s\) on (.*)", log)]
        for trial, log in logs.items()
    }


def everything_is_whole(run: Run) -> None:
    """Check that all checkpoints and releases are complete: each file has the hash in its
    manifest."""
    assert Registry(str(run.storage_dir)).names() == ["cancer"]
    release = Registry(str(run.storage_dir)).resolve("cancer@best")
    assert release.record.version == 1
    checkpoint.verify(release.folder(), expected_id=release.record.content_id)
    for folder in (run.folder / "trials").glob("*/checkpoints/step-*"):
        checkpoint.verify(folder)


def test_workers_spread_over_two_nodes_find_what_one_node_finds(
    nodes: Raylets, tmp_path: Path, alone: Figures
) -> None:
    start = time.monotonic()
    end = Study(write_study(tmp_path, *EXACT, SPREAD), cluster_env=nodes.cluster_env).end()
    assert end.status == 0, end.output
    run = latest(tmp_path / "runs" / "tiny")
    print(f"{time.monotonic() - start:.0f} s")
    agree(run, alone)
    both = [nodes.address(1), nodes.address(2)]
    assert {
        trial: [sorted(nodes_of) for nodes_of in times] for trial, times in placements(run).items()
    } == {trial: [both] for trial in alone}
    everything_is_whole(run)


def test_shards_of_every_stage_over_two_nodes_agree_with_one_plain_worker(
    nodes: Raylets, tmp_path: Path
) -> None:
    # Stage 3 leaves weights below 100,000 numbers whole; wide layers with large weights would make
    # much of the last bit.
    base = tiny.base(tmp_path, hidden_size=256, intermediate_size=512, initializer_range=0.05)
    settings = ("lora.dropout=0.0", "data.limit=48", "train.epochs=2", "train.learning_rate=0.002")
    stages = ", ".join(
        f"{{source: {base}, overrides: {{train.strategy: deepspeed, train.zero_stage: {stage}}}}}"
        for stage in range(4)
    )
    study = tiny.study(tmp_path, *settings, f"base_models=[{stages}]", SPREAD)
    path = tmp_path / "study.yaml"
    path.write_text(dump_settings(study))
    end = Study(path, cluster_env=nodes.cluster_env).end()
    assert end.status == 0, end.output
    (tmp_path / "alone").mkdir()
    plain = tiny.trial(tiny.study(tmp_path, *settings), tmp_path / "alone").run().history
    run = latest(tmp_path / "runs" / "tiny")
    assert [len(set(nodes_of)) for (nodes_of,) in placements(run).values()] == [2, 2, 2, 2]
    furthest = {}
    for record in run.records():
        history = run.history(record.trial)
        assert [row.metrics["f1_macro"] for row in history] == [
            row.metrics["f1_macro"] for row in plain
        ]
        pairs = [
            (row.train_loss, reference.train_loss)
            for row, reference in zip(history, plain, strict=True)
        ]
        pairs += [
            (row.metrics["log_loss"], reference.metrics["log_loss"])
            for row, reference in zip(history, plain, strict=True)
        ]
        furthest[record.trial] = max(abs(nodes_of - reference) for nodes_of, reference in pairs)
    print(f"furthest from plain: {furthest}")
    assert len(furthest) == 4
    assert max(furthest.values()) < 1e-5


@pytest.mark.parametrize(
    ("what", "settings", "command"),
    [
        ("trials in a process each", "resources.cpus_per_worker=1", ("study",)),
        ("trials of two workers, submitted as a job", SPREAD, ("submit", "--follow")),
    ],
)
def test_a_study_goes_on_when_a_raylet_is_killed(
    what: str,
    settings: str,
    command: tuple[str, ...],
    nodes: Raylets,
    tmp_path: Path,
    alone: Figures,
) -> None:
    study = Study(
        write_study(tmp_path, *EXACT, settings),
        *command[1:],
        command=command[0],
        cluster_env=nodes.cluster_env,
    )
    node_to_kill = None
    try:
        study.until(r"tiny-bert-000  epoch 2 ")
        start = time.monotonic()
        run = latest(tmp_path / "runs" / "tiny")
        before = placements(run)
        node_to_kill = next(
            node for node in (1, 2) if nodes.address(node) in before["tiny-bert-000"][-1]
        )
        os.kill(nodes.raylet(node_to_kill), signal.SIGKILL)
        end = study.end()
    finally:
        study.abandon()
        if node_to_kill:
            nodes.run("restart", node_to_kill)
    assert end.status == 0, end.output
    again = epochs_trained_twice(run)
    restarts = [
        trial for trial, times in placements(run).items() if len(times) > len(before[trial])
    ]
    print(
        f"{what}: ended {time.monotonic() - start:.0f} s after the kill; epochs trained twice "
        f"{again:.2f} by {len(restarts)} trials; {placements(run)}"
    )
    assert restarts
    agree(run, alone)
    assert again <= len(restarts)  # one evaluation interval for each trial that ran there
    everything_is_whole(run)
