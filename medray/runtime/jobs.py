"""Jobs of a cluster over Ray's job API: submit a study, list jobs, follow their logs, stop them,
and read how they ended."""

import asyncio
import logging
import os
import shlex
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from medray.config import environment
from medray.config.study import StudyConfig
from medray.errors import ConfigError, MedrayError, TrialError
from medray.runtime.cluster import log
from medray.runtime.parcel import STUDY, Parcel, stage
from medray.storage import checkpoint

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


STOP_STATUS = 143  # what SIGTERM gives
PATIENCE_S = 60.0


class Jobs(Protocol):
    """The part of `ray.job_submission.JobSubmissionClient` that medray uses."""

    def submit_job(
        self,
        *,
        entrypoint: str,
        submission_id: str,
        runtime_env: dict[str, Any],
        metadata: dict[str, str],
        entrypoint_num_gpus: float,
    ) -> str: ...
    def stop_job(self, job_id: str) -> bool: ...
    def get_job_info(self, job_id: str) -> Any: ...
    def get_job_logs(self, job_id: str) -> str: ...
    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]: ...
    def list_jobs(self) -> Sequence[Any]: ...


@dataclass(frozen=True)
class JobSummary:
    job: str
    study: str | None  # None: medray submit did not start it
    status: str  # Ray's word: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED
    start: str | None  # ISO 8601
    exit_status: int | None  # None: it has not ended

    def render(self) -> str:
        ending = f" ({self.exit_status})" if self.exit_status else ""
        study = f"  study {self.study}" if self.study else ""
        return f"{self.job}  {self.status}{ending}  {self.start or 'not started'}{study}"


def submit(
    jobs: Jobs, study: StudyConfig, parcel: Parcel, *, python: str, options: tuple[str, ...] = ()
) -> str:
    """Submit a study and return its job's name."""
    job = f"medray-{study.name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
    commit = checkpoint.git_commit()
    variables = {environment.COMMIT_VARIABLE: commit} if commit else {}
    if parcel.hub_token_file:
        variables["HF_TOKEN_PATH"] = parcel.hub_token_file
    with tempfile.TemporaryDirectory(prefix="medray-submit-") as place:
        stage(study, Path(place), parcel)
        return jobs.submit_job(
            entrypoint=shlex.join([python, "-m", "medray.cli", "study", STUDY, *options]),
            submission_id=job,
            runtime_env={"working_dir": place, "env_vars": variables},
            metadata={
                "medray_study": study.name,
                "medray_version": checkpoint.versions()["medray"],
                **({"medray_commit": commit} if commit else {}),
            },
            entrypoint_num_gpus=0,  # trials compute, the study's own process does not
        )


def head_python(nodes: list[dict[str, Any]]) -> str | None:
    """Return the interpreter that the head starts its workers with, as the dashboard reports it.

    A job's command is looked up on the PATH that Ray was started with, whose `python` may lack
    Ray."""
    head = next((node for node in nodes if node.get("raylet", {}).get("isHeadNode")), {})
    command = next(
        (word for word in head.get("cmdline", []) if word.startswith("--python_worker_command=")),
        "",
    )
    words = shlex.split(command.partition("=")[2])
    return words[0] if words else None


def summaries(jobs: Jobs) -> list[JobSummary]:
    """Return the jobs that were submitted to the cluster, the newest first."""
    details = [info for info in jobs.list_jobs() if info.submission_id]
    return [
        JobSummary(
            info.submission_id,
            (info.metadata or {}).get("medray_study"),
            str(getattr(info.status, "value", info.status)),
            datetime.fromtimestamp(info.start_time / 1000, UTC).isoformat(timespec="seconds")
            if info.start_time
            else None,
            exit_status(info) if info.status.is_terminal() else None,
        )
        for info in sorted(details, key=lambda info: -(info.start_time or 0))
    ]


def follow(
    jobs: Jobs,
    job: str,
    write: Callable[[str], None],
    *,
    pause_s: float = 2.0,
    patience_s: float = PATIENCE_S,
) -> int:
    """Write a job's log from its beginning until the job ends, and return its exit status."""
    position, last_reply = 0, time.monotonic()
    while True:
        try:
            position = asyncio.run(_tail(jobs, job, position, write))
            info = jobs.get_job_info(job)
            last_reply = time.monotonic()
            if info.status.is_terminal():
                write(jobs.get_job_logs(job)[position:])
                return exit_status(info)
        except OSError as err:  # errors of the library `requests` are OSErrors too
            if time.monotonic() - last_reply > patience_s:
                raise TrialError(
                    f"job {job}: the cluster has not replied for {patience_s:.0f} s; the job may "
                    f"still run: {err}"
                ) from None
        time.sleep(pause_s)


async def _tail(jobs: Jobs, job: str, position: int, write: Callable[[str], None]) -> int:
    """Write the log as it grows beyond a position, and return the new position."""
    total = 0
    try:
        async for part in jobs.tail_job_logs(job):
            total += len(part)
            if total > position:
                write(part[-(total - position) :])
                position = total
    except RuntimeError:
        pass  # Ray's error for a closed connection; the caller then looks whether the job ended
    return position


def stop(jobs: Jobs, job: str, *, patience_s: float = PATIENCE_S, pause_s: float = 0.5) -> bool:
    """Stop a job, wait until it has ended, and return whether it was running."""
    was_running = jobs.stop_job(job)
    end = time.monotonic() + patience_s
    while not jobs.get_job_info(job).status.is_terminal():
        if time.monotonic() > end:
            raise TrialError(
                f"job {job}: has not ended {patience_s:.0f} s after the request to stop; look at "
                "its log, or stop it again"
            )
        time.sleep(pause_s)
    return was_running


def exit_status(info: Any) -> int:
    """Return the exit status of the job's own command; Ray's CLI gives 1 for every failure."""
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED":
        return STOP_STATUS
    code = info.driver_exit_code
    if not code:  # it failed before its command ran
        return 1
    return 128 - code if code < 0 else int(code)


@contextmanager
def connect(address: str | None) -> Iterator["JobSubmissionClient"]:
    """Yield a client for the jobs of the cluster whose dashboard is at an address, by default the
    one in RAY_API_SERVER_ADDRESS or RAY_ADDRESS. Errors of Ray become one sentence."""
    client = _client(address)
    try:
        yield client
    except MedrayError:
        raise
    except RuntimeError as err:  # Ray's error for a job that it does not know, or refuses
        raise ConfigError(str(err).splitlines()[0]) from None


def _client(address: str | None) -> "JobSubmissionClient":
    url = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not url:
        raise ConfigError(
            "no cluster is named; give --address http://HOST:8265, or set RAY_API_SERVER_ADDRESS"
        )
    if address:  # Ray prefers the environment to its own argument
        os.environ["RAY_API_SERVER_ADDRESS"] = address
    if (
        any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
        or Path("~/.ray/auth_token").expanduser().is_file()
    ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard").setLevel(logging.ERROR)
    try:
        client = JobSubmissionClient(url)
    except AuthenticationError:
        raise ConfigError(
            f"{url}: requires another token than the one in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH "
            "or ~/.ray/auth_token"
        ) from None
    except (OSError, RuntimeError, ValueError) as err:
        raise ConfigError(
            f"{url}: no Ray dashboard responds there: {str(err).splitlines()[0]}"
        ) from None
    if (version := client._server_ray_version) != ray.__version__:
        log.warning(
            "%s: the cluster runs Ray %s, this medray is made for %s", url, version, ray.__version__
        )
    return client


def nodes_of(client: "JobSubmissionClient") -> list[dict[str, Any]]:
    """Return the dashboard's summary of the nodes, from the address that its own page uses."""
    response = client._do_request("GET", "/nodes?view=summary")
    summary: list[dict[str, Any]] = (
        response.json()["data"]["summary"] if response.status_code == 200 else []
    )
    return summary
