"""Tests of what `medray submit` sends from this machine, of following a log, and of exit statuses.
The cluster is a fake."""

import contextlib
import json
import shlex
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobStatus
from support import tiny

from medray import cli, plugins
from medray.config.load import dump_settings, load_study
from medray.config.study import StudyConfig
from medray.errors import ConfigError, TrialError
from medray.runtime import jobs as submission
from medray.runtime import parcel
from medray.runtime.parcel import Parcel
from medray.storage import checkpoint

UPLOAD = Parcel(upload_data=True)


@dataclass
class Details:
    status: JobStatus
    driver_exit_code: int | None = None
    submission_id: str | None = None
    metadata: dict[str, str] | None = None
    start_time: int | None = None  # in ms


@dataclass
class Jobs:
    """A cluster with one job. Its log comes in parts, and the connection breaks after each."""

    parts: list[str] = field(default_factory=list)
    end: Details = field(default_factory=lambda: Details(JobStatus.SUCCEEDED, 0))
    request: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    num_requests: int = 0
    entries: list[Details] = field(default_factory=list)

    def list_jobs(self) -> list[Details]:
        return self.entries

    def submit_job(self, **settings: Any) -> str:
        folder = Path(settings["runtime_env"]["working_dir"])
        self.files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        self.request = settings
        return str(settings["submission_id"])

    def stop_job(self, job_id: str) -> bool:
        return not self.end.status.is_terminal()

    def get_job_info(self, job_id: str) -> Details:
        self.num_requests += 1
        return self.end if self.num_requests >= len(self.parts) else Details(JobStatus.RUNNING)

    def get_job_logs(self, job_id: str) -> str:
        return "".join(self.parts) + "the end"

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for part in self.parts[: self.num_requests + 1]:
            yield part
        raise RuntimeError("the connection was closed")


def test_the_package_and_the_resolved_study_travel_and_nothing_else(tmp_path: Path) -> None:
    jobs = Jobs()
    study = tiny.study(tmp_path, "train.epochs=3")
    job = submission.submit(jobs, study, Parcel(), python="/opt/its/python", options=("--resume",))
    assert job.startswith(f"medray-{study.name}-")
    assert {name.split("/")[0] for name in jobs.files} == {"medray", "study.yaml"}
    assert (
        jobs.files["medray/study/study.py"]
        == (Path(checkpoint.__file__).parents[1] / "study" / "study.py").read_bytes()
    )
    assert not any("__pycache__" in name for name in jobs.files)
    (tmp_path / "read.yaml").write_bytes(jobs.files["study.yaml"])
    assert load_study([tmp_path / "read.yaml"]) == study
    assert shlex.split(jobs.request["entrypoint"]) == [
        "/opt/its/python",
        "-m",
        "medray.cli",
        "study",
        "study.yaml",
        "--resume",
    ]
    assert jobs.request["entrypoint_num_gpus"] == 0


def test_the_commit_travels_because_the_repository_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "git_commit", lambda: "abc-dirty")
    jobs = Jobs()
    submission.submit(jobs, tiny.study(tmp_path), Parcel(), python="python")
    environment = jobs.request["runtime_env"]["env_vars"]
    assert environment == {"MEDRAY_GIT_COMMIT": "abc-dirty"}
    monkeypatch.undo()
    monkeypatch.setenv(*next(iter(environment.items())))
    checkpoint.git_commit.cache_clear()
    try:
        assert checkpoint.git_commit() == "abc-dirty"
    finally:
        checkpoint.git_commit.cache_clear()


def test_no_token_of_this_machine_travels_and_a_key_in_the_settings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hf_" + "aB3" * 11 + "a"
    monkeypatch.setenv("HF_TOKEN", secret)
    jobs = Jobs()
    submission.submit(
        jobs, tiny.study(tmp_path), Parcel(hub_token_file="/run/secrets/hub"), python="python"
    )
    assert jobs.request["runtime_env"]["env_vars"]["HF_TOKEN_PATH"] == "/run/secrets/hub"
    assert secret not in json.dumps(
        {**jobs.request, "runtime_env": jobs.request["runtime_env"]}, default=str
    )
    assert not any(secret.encode() in content for content in jobs.files.values())
    with pytest.raises(
        ConfigError,
        match=(
            r"mlflow.tracking_uri: holds what looks like a key or password \(a token of Hugging "
            r"Face\)"
        ),
    ):
        submission.submit(
            jobs,
            tiny.study(tmp_path, f"mlflow.tracking_uri=https://host/{secret}"),
            Parcel(),
            python="python",
        )


def test_data_that_lies_elsewhere_is_left_for_the_cluster_to_pull(tmp_path: Path) -> None:
    study = _write_study(tiny.study(tmp_path), tmp_path)
    for number, place in enumerate(
        ("data.format.path=s3://bucket/rows.jsonl", "data.format={name: hub, path: owner/name}")
    ):
        folder = tmp_path / f"sent{number}"
        folder.mkdir()
        parcel.stage(load_study([study], [place]), folder, Parcel())
        assert not (folder / "data").exists()
        assert ("s3://bucket/rows.jsonl", "owner/name")[number] in (
            folder / parcel.STUDY
        ).read_text()


def test_data_of_this_machine_is_sent_only_when_asked_and_only_up_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = tiny.study(tmp_path)
    data = Path(study.data.format.model_dump()["path"])
    relative = load_study(
        [_write_study(study, tmp_path)], [f"data.format.path={data.relative_to(tmp_path)}"]
    )
    with pytest.raises(
        ConfigError,
        match=r"data.format.path: .* is a path of this machine.*or send it with --upload-data",
    ):
        submission.submit(Jobs(), relative, Parcel(), python="python")
    with pytest.raises(ConfigError, match=r"more than the 0\.0 MB that --max-upload-mb allows"):
        submission.submit(Jobs(), relative, Parcel(True, max_bytes=10), python="python")
    jobs = Jobs()
    submission.submit(jobs, relative, UPLOAD, python="python")
    uploads = {name for name in jobs.files if name.startswith("data/")}
    (tmp_path / "sent.yaml").write_bytes(jobs.files["study.yaml"])
    assert uploads
    assert all(
        name.startswith(load_study([tmp_path / "sent.yaml"]).data.format.model_dump()["path"])
        for name in uploads
    )


def _write_study(study: StudyConfig, folder: Path) -> Path:
    path = folder / "study-of-test.yaml"
    path.write_text(dump_settings(study))
    return path


def test_a_base_model_in_a_folder_of_this_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = tiny.study(tmp_path)
    source = Path(study.base_models[0].source).relative_to(tmp_path)
    relative = study.model_copy(
        update={"base_models": (study.base_models[0].model_copy(update={"source": f"./{source}"}),)}
    )
    with pytest.raises(ConfigError, match=rf"base model ./{source}: is a path of this machine"):
        submission.submit(Jobs(), relative, Parcel(), python="python")


def test_every_setting_that_names_a_file_is_known_here() -> None:
    file_settings = {
        f"{section}.{option}"
        for section, seam in (("data.format", "data.formats"), ("task", "tasks"))
        for name in plugins.names(seam)
        for option, of in plugins.find(seam, name).Options.model_fields.items()
        if str(of.description).startswith("file ")
        or str(of.description).startswith("file,")
        or ".json:" in str(of.description)
    }
    assert file_settings == set(parcel.DATA_SETTINGS) - {"data.corrections"}


def test_a_log_is_shown_once_although_its_connection_breaks_and_the_end_is_not_lost() -> None:
    jobs, output = Jobs(["one\n", "two\n", "three\n"], Details(JobStatus.FAILED, 7)), []
    assert submission.follow(jobs, "job", output.append, pause_s=0) == 7
    assert "".join(output) == "one\ntwo\nthree\nthe end"


def test_a_cluster_that_replies_no_more_ends_the_waiting_with_an_error() -> None:
    class UnreachableJobs(Jobs):
        def get_job_info(self, job_id: str) -> Details:
            raise ConnectionError("refused")

    with pytest.raises(TrialError, match="the job may still run: refused"):
        submission.follow(
            UnreachableJobs(["one"]), "job", lambda text: None, pause_s=0.01, patience_s=0.05
        )


@pytest.mark.parametrize(
    ("details", "status"),
    [
        (Details(JobStatus.SUCCEEDED, 0), 0),
        (Details(JobStatus.FAILED, 2), 2),
        (Details(JobStatus.FAILED, -9), 137),
        (Details(JobStatus.FAILED, None), 1),
        (Details(JobStatus.STOPPED, None), 143),
    ],
)
def test_the_exit_status_is_that_of_the_jobs_own_command(details: Details, status: int) -> None:
    assert submission.exit_status(details) == status


def test_stopping_waits_for_the_end_and_a_job_that_does_not_end_is_reported() -> None:
    assert submission.stop(Jobs(end=Details(JobStatus.STOPPED)), "job") is False
    with pytest.raises(TrialError, match="has not ended 0 s after the request to stop"):
        submission.stop(Jobs(end=Details(JobStatus.RUNNING)), "job", patience_s=0, pause_s=0)


def test_the_interpreter_is_the_one_that_the_head_runs_ray_with() -> None:
    head = {
        "raylet": {"isHeadNode": True},
        "cmdline": ["raylet", "--python_worker_command=/opt/venv/bin/python3 -u worker.py --x=1"],
    }
    other = {
        "raylet": {"isHeadNode": False},
        "cmdline": ["raylet", "--python_worker_command=/usr/bin/python x"],
    }
    assert submission.head_python([other, head]) == "/opt/venv/bin/python3"
    assert submission.head_python([other]) is None


def test_jobs_are_listed_with_their_study_and_exit_status_the_newest_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = Jobs()
    jobs.entries = [
        Details(JobStatus.FAILED, 2, "medray-a-1", {"medray_study": "a"}, 1_000_000),
        Details(JobStatus.RUNNING, None, "other", None, 2_000_000),
        Details(JobStatus.RUNNING, None, None),  # a driver without a submission
    ]
    monkeypatch.setattr(submission, "connect", lambda address: contextlib.nullcontext(jobs))
    assert cli.main(["jobs", "list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "other  RUNNING  1970-01-01T00:33:20+00:00",
        "medray-a-1  FAILED (2)  1970-01-01T00:16:40+00:00  study a",
    ]


def test_ctrl_c_leaves_a_job_running_with_exit_status_130_and_names_the_next_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(submission, "connect", lambda address: contextlib.nullcontext(Jobs()))
    monkeypatch.setattr(submission, "follow", interrupt)
    assert cli.main(["jobs", "logs", "long", "--follow"]) == 130
    message = capsys.readouterr().err
    assert message.count("interrupted") == 1
    assert "`medray jobs logs long --follow` prints its log" in message


def test_a_cluster_must_be_named_and_must_respond(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["jobs", "stop", "b"]) == 1
    assert "no cluster is named; give --address" in capsys.readouterr().err
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert cli.main(["jobs", "stop", "b"]) == 1
    assert "http://127.0.0.1:1: no Ray dashboard responds there" in capsys.readouterr().err
