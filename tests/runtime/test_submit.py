"""Tests of `ray job submit` and `medray submit` to a running head: exit status, logs and the place
of results."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import serve_session, tiny

from medray.config.load import dump_settings
from medray.runtime.cluster import free_port
from medray.storage import checkpoint
from medray.study.run import latest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Head:
    address: str
    environment: dict[str, str]
    process: int

    def job(self, action: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            str(Path(sys.executable).with_name("ray")),
            "job",
            action,
            "--address",
            self.address,
            *arguments,
        ]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=400
        )

    def submit(
        self, *arguments: str, options: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        return self.job("submit", "--working-dir", str(ROOT), *options, "--", "python", *arguments)

    def medray(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `medray` as on a machine whose PATH has another Python."""
        command = [
            sys.executable,
            "-m",
            "medray.cli",
            *arguments,
            "--address",
            self.address,
        ]
        return subprocess.run(
            command,
            env={**self.environment, **variables},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=400,
        )


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("ray")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HOME": str(folder),
    }
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("0" * 64)
    ports = [free_port() for _ in range(5)]
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        "--num-cpus",
        "4",
        "--temp-dir",
        f"/tmp/r{os.getpid()}",
    ]
    command += [
        "--port",
        str(ports[0]),
        "--dashboard-port",
        str(ports[1]),
        "--ray-client-server-port",
        str(ports[2]),
    ]
    command += [
        "--dashboard-agent-listen-port",
        str(ports[3]),
        "--dashboard-agent-grpc-port",
        str(ports[4]),
    ]
    running = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{ports[1]}"
    try:
        _wait(address)
        yield Head(address, environment, running.pid)
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        running.wait(timeout=60)


def _wait(address: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/api/gcs_healthz", timeout=2)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail("the head did not come up")


def test_a_submitted_study_is_ranked_published_and_evaluated_and_its_results_outlive_the_job(
    head: Head, tmp_path: Path
) -> None:
    study = tmp_path / "study.yaml"
    space = "search.space={train.learning_rate: {choice: [0.01, 0.02]}}"
    study.write_text(
        dump_settings(tiny.study(tmp_path, space, "search.num_trials=2", "storage_path=runs"))
    )
    result = head.submit("jobs/study.py", str(study), "publish={name: cancer, allow_worse: true}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "published: cancer@1" in result.stdout
    # Not below the job's working folder, which is deleted.
    runs = Path(head.environment["HOME"]) / "medray" / "runs"
    board = latest(runs / "tiny").leaderboard()
    assert sum(entry.kind == "trial" for entry in board.entries) == 2
    evaluation = head.submit("jobs/evaluate.py", "cancer@best", str(study))
    assert f"f1_macro {board.best.test['f1_macro']:.4f}" in evaluation.stdout, (
        evaluation.stdout + evaluation.stderr
    )
    again = head.submit("jobs/publish.py", str(runs / "tiny"), "again", "--alias", "best")
    assert "again@1 is again@best" in again.stdout, again.stdout + again.stderr


def test_a_submitted_study_that_fails_prints_the_reason_and_exits_non_zero(
    head: Head, tmp_path: Path
) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(dump_settings(tiny.study(tmp_path)))
    wrong = head.submit("jobs/study.py", str(study), "train.epochs=0")
    assert wrong.returncode == 1
    assert "train.epochs: input should be greater than" in wrong.stdout
    never = head.submit(
        "jobs/study.py", str(study), "train.samples_per_step=18", "resources.num_workers=9"
    )
    assert never.returncode == 1
    assert "which this cluster does not have: a node with 4 CPU(s)" in never.stdout
    divergence = head.submit("jobs/study.py", str(study), "train.learning_rate=1.0e+30")
    assert divergence.returncode == 1
    assert "nothing to rank: tiny-bert-000: the loss is" in divergence.stdout


def test_medray_submit_sends_study_and_data_shows_the_log_and_exits_as_the_job_did(
    head: Head, tmp_path: Path
) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(dump_settings(tiny.study(tmp_path, "storage_path=runs", "name=sent")))
    secret = "hf_" + "s" * 34
    result = head.medray(
        "submit",
        str(study),
        "--follow",
        "--upload-data",
        "publish={name: sent, allow_worse: true}",
        HF_TOKEN=secret,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("published: sent@1") == 1
    run = latest(Path(head.environment["HOME"]) / "medray" / "runs" / "sent")
    manifest = checkpoint.read(Path(run.leaderboard().best.checkpoint))
    assert manifest.trial["data"]["format"]["path"] == "data/path/rows.jsonl"
    assert manifest.git_commit == checkpoint.git_commit()
    failure = head.medray(
        "submit",
        str(study),
        "--follow",
        "--upload-data",
        "train.learning_rate=1.0e+30",
        "name=diverged",
    )
    assert failure.returncode == 1
    assert "nothing to rank: tiny-bert-000: the loss is" in failure.stdout
    nowhere = head.medray(
        "submit", str(study), "--follow", "--upload-data", "--python", "/nowhere/python"
    )
    assert nowhere.returncode == 127, nowhere.stdout + nowhere.stderr  # Ray's own CLI exits with 1
    listing = head.job("list").stdout
    assert "medray-sent-" in listing
    # The head reports its interpreter; it is not taken from the PATH.
    assert f"{Path(sys.executable).parent}/python" in listing.replace("/nowhere/python", "")
    assert secret not in listing + result.stdout + result.stderr


def test_jobs_are_listed_followed_and_stopped_and_an_unknown_job_is_an_error(
    head: Head, tmp_path: Path
) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        dump_settings(tiny.study(tmp_path, "storage_path=runs", "name=long", "train.epochs=500"))
    )
    submission = head.medray("submit", str(study))
    assert submission.returncode == 0, submission.stdout + submission.stderr
    job = re.search(r"job: (\S+)", submission.stdout)
    assert job
    stop = head.medray("jobs", "stop", job[1])
    assert stop.stdout.strip() == f"{job[1]} is stopped"
    follow = head.medray("jobs", "logs", job[1], "--follow")
    assert follow.returncode == 143
    assert "interrupted" not in follow.stderr
    listing = head.medray("jobs", "list").stdout.splitlines()
    assert any(
        line.startswith(f"{job[1]}  STOPPED (143)  20") and line.endswith("  study long")
        for line in listing
    ), listing
    unknown = head.medray("jobs", "stop", "never")
    assert unknown.returncode == 1
    assert "never" in unknown.stderr
    refusal = head.medray("jobs", "logs", job[1], RAY_AUTH_TOKEN="1" * 64)
    assert refusal.returncode == 1
    assert "requires another token" in refusal.stderr


@pytest.mark.chaos
def test_a_job_that_is_stopped_leaves_no_trial_behind_and_a_study_that_goes_on(
    head: Head, tmp_path: Path
) -> None:
    study = tmp_path / "study.yaml"
    grid = "search.space={train.learning_rate: {grid: [0.002, 0.004]}}"
    settings = [
        grid,
        "search.algorithm=grid",
        "train.epochs=25",
        "storage_path=runs",
        "name=stopped",
    ]
    study.write_text(dump_settings(tiny.study(tmp_path, *settings, num_rows=800)))
    assert (
        head.submit(
            "jobs/study.py", str(study), options=["--no-wait", "--submission-id", "stopped"]
        ).returncode
        == 0
    )
    deadline = time.monotonic() + 120
    while "epoch 2 " not in (log := head.job("logs", "stopped").stdout):
        assert time.monotonic() < deadline, log
    assert head.job("stop", "stopped").returncode == 0
    deadline = time.monotonic() + 15
    while trials := [
        name
        for name in serve_session.processes(head.process).values()
        if re.match(r"ray::.*train", name)
    ]:
        assert time.monotonic() < deadline, trials
        time.sleep(0.2)
    run = latest(Path(head.environment["HOME"]) / "medray" / "runs" / "stopped")
    assert "running" in {record.status for record in run.records()}
    result = head.submit("jobs/study.py", str(study), "--resume")
    assert result.returncode == 0, result.stdout + result.stderr
    assert [(record.status, len(run.history(record.trial))) for record in run.records()] == [
        ("finished", 25)
    ] * 2
