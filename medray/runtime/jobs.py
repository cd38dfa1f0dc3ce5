"""A study sent to a cluster as a job: what travels, how its log is followed, and what its exit
status was.

A folder is staged and sent: the package, the resolved study, and data that was asked to be sent.
Nothing else of this machine travels."""

import asyncio
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from medray.config.environment import COMMIT_VARIABLE
from medray.config.files import put
from medray.config.load import load_study
from medray.config.study import StudyConfig
from medray.data.remote import is_elsewhere
from medray.errors import ConfigError, TrialError, redaction
from medray.runtime.cluster import log
from medray.storage import checkpoint, files

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


STUDY = "study.yaml"
STOPPED = 143  # what SIGTERM gives
_FILES = (
    "data.format.path",
    "data.format.ground_truth",
    "data.corrections",
    "task.sample_prompts",
)  # settings that name data
_PATIENCE_S = 60.0


class Jobs(Protocol):
    """What is used of `ray.job_submission.JobSubmissionClient`."""

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


@dataclass(frozen=True)
class Parcel:
    """What of this machine goes along with a study."""

    upload_data: bool = False
    limit_bytes: int = 100_000_000
    hub_token_file: str | None = None  # on the cluster's nodes


def submit(
    jobs: Jobs, study: StudyConfig, parcel: Parcel, *, python: str, options: tuple[str, ...] = ()
) -> str:
    """The name of the job that runs the study."""
    job = f"medray-{study.name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
    commit = checkpoint.git_commit()
    environment = {COMMIT_VARIABLE: commit} if commit else {}
    if parcel.hub_token_file:
        environment["HF_TOKEN_PATH"] = parcel.hub_token_file
    with tempfile.TemporaryDirectory(prefix="medray-submit-") as place:
        stage(study, Path(place), parcel)
        return jobs.submit_job(
            entrypoint=shlex.join([python, "-m", "medray.cli", "study", STUDY, *options]),
            submission_id=job,
            runtime_env={"working_dir": place, "env_vars": environment},
            metadata={
                "medray_study": study.name,
                "medray_version": checkpoint.versions()["medray"],
                **({"medray_commit": commit} if commit else {}),
            },
            entrypoint_num_gpus=0,  # trials compute, the study's own process does not
        )


def stage(study: StudyConfig, folder: Path, parcel: Parcel) -> int:
    """Fill the folder that is sent, and return its size."""
    raw = study.model_dump(mode="json")
    wrong = [
        f"base model {base.source}: {_not_seen(base.source)}"
        for base in study.base_models
        if _is_here(base.source)
    ]
    for setting, value in _named_files(raw):
        own = setting == "data.format.path" and getattr(study.data.format, "lies_elsewhere", False)
        if own or (setting.startswith("data.format.") and is_elsewhere(value)):
            continue  # the nodes pull it
        if parcel.upload_data and Path(value).expanduser().exists():
            put(
                raw,
                setting,
                _copied(setting, Path(value).expanduser(), folder, parcel.limit_bytes),
                where=setting,
            )
        elif not Path(value).is_absolute():
            here = ", or send it with --upload-data" if Path(value).expanduser().exists() else ""
            wrong.append(f"{setting}: {value}: {_not_seen(value)}{here}")
    wrong += [
        f"{setting}: holds what looks like a key or password ({kind}); a study is stored and "
        "shown: name it instead, as"
        " ${env:NAME} of the head node's environment or ${file:PATH} there"
        for setting, kind in redaction.find(raw)
    ]
    if wrong:
        raise ConfigError(
            f"study {study.name} cannot run on a cluster as it is:\n"
            + "\n".join(f"  {sentence}" for sentence in wrong)
        )
    (folder / STUDY).write_text(
        yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    shutil.copytree(
        Path(checkpoint.__file__).parents[1],
        folder / "medray",
        ignore=shutil.ignore_patterns("__pycache__", "*.pyc"),
    )
    load_study([folder / STUDY])  # what the job will read
    return _size(folder)


def _named_files(raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for setting in _FILES:
        found: Any = raw
        for key in setting.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        if found:
            yield setting, str(found)


def _is_here(source: str) -> bool:
    """Whether a base model is a folder of this machine; one with an absolute path may be the
    cluster's too."""
    return (
        not source.startswith("pkg:")
        and not Path(source).is_absolute()
        and Path(source).expanduser().is_dir()
    )


def _not_seen(path: str) -> str:
    return (
        "is a path of this machine, or of none; give the absolute path that the cluster's nodes "
        f"see {Path(path).name} at"
    )


def _copied(setting: str, source: Path, folder: Path, limit_bytes: int) -> str:
    size = _size(source)
    if size > limit_bytes:
        raise ConfigError(
            f"{setting}: {source} has {size / 1e6:.1f} MB, more than the {limit_bytes / 1e6:.1f} "
            "MB that --max-upload-mb allows; "
            "put it where the cluster's nodes see it"
        )
    place = folder / "data" / setting.rpartition(".")[2] / source.resolve().name
    place.parent.mkdir(parents=True)
    if source.is_dir():
        shutil.copytree(source, place)
    else:
        shutil.copyfile(source, place)
    return place.relative_to(folder).as_posix()


def _size(path: Path) -> int:
    return (
        sum(file.stat().st_size for file in files.files(path))
        if path.is_dir()
        else path.stat().st_size
    )


def head_python(nodes: list[dict[str, Any]]) -> str | None:
    """The interpreter that the head starts its workers with, from what the dashboard tells of the
    nodes.

    A job's command is found on the PATH that Ray was started with, where `python` may be one
    without Ray."""
    head = next((node for node in nodes if node.get("raylet", {}).get("isHeadNode")), {})
    command = next(
        (word for word in head.get("cmdline", []) if word.startswith("--python_worker_command=")),
        "",
    )
    words = shlex.split(command.partition("=")[2])
    return words[0] if words else None


def follow(jobs: Jobs, job: str, write: Callable[[str], None], *, pause_s: float = 2.0) -> int:
    """Show a job's log from its beginning until the job ends; what its command exited with."""
    seen, answered = 0, time.monotonic()
    while True:
        try:
            seen = asyncio.run(_tail(jobs, job, seen, write))
            info = jobs.get_job_info(job)
            answered = time.monotonic()
            if info.status.is_terminal():
                write(jobs.get_job_logs(job)[seen:])
                return exit_status(info)
        except OSError as err:  # requests' errors are such too
            if time.monotonic() - answered > _PATIENCE_S:
                raise TrialError(
                    f"job {job}: the cluster has not answered for a minute; the job may go on: "
                    f"{err}"
                ) from None
        time.sleep(pause_s)


async def _tail(jobs: Jobs, job: str, seen: int, write: Callable[[str], None]) -> int:
    """The log as it comes, without the characters that were shown before a connection broke."""
    total = 0
    try:
        async for part in jobs.tail_job_logs(job):
            total += len(part)
            if total > seen:
                write(part[-(total - seen) :])
                seen = total
    except RuntimeError:
        pass  # Ray's word for a connection that was closed; whether the job ended is asked for next
    return seen


def stop(jobs: Jobs, job: str, *, patience_s: float = _PATIENCE_S, pause_s: float = 0.5) -> bool:
    """Whether it ran; it has ended when this returns."""
    ran = jobs.stop_job(job)
    end = time.monotonic() + patience_s
    while not jobs.get_job_info(job).status.is_terminal():
        if time.monotonic() > end:
            raise TrialError(
                f"job {job}: has not ended within {patience_s:.0f} s of being asked to"
            )
        time.sleep(pause_s)
    return ran


def exit_status(info: Any) -> int:
    """What the job's command exited with: Ray's own CLI says 1 for every failure."""
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED":
        return STOPPED
    code = info.driver_exit_code
    if not code:  # it failed before its command ran
        return 1
    return 128 - code if code < 0 else int(code)


def jobs_of(address: str | None) -> "JobSubmissionClient":
    """A client for jobs of the cluster whose dashboard is at an address; where none is given,
    RAY_API_SERVER_ADDRESS or RAY_ADDRESS names it."""
    asked = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not asked:
        raise ConfigError(
            "no cluster is named: give --address http://HOST:8265, or set RAY_API_SERVER_ADDRESS"
        )
    if address:  # Ray lets the environment win over what is asked for
        os.environ["RAY_API_SERVER_ADDRESS"] = address
    if (
        any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
        or Path("~/.ray/auth_token").expanduser().is_file()
    ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(asked)
    except AuthenticationError:
        raise ConfigError(
            f"{asked}: asks for another token than the one in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH "
            "or ~/.ray/auth_token"
        ) from None
    except (OSError, RuntimeError, ValueError) as err:
        raise ConfigError(
            f"{asked}: no Ray dashboard answers there: {str(err).splitlines()[0]}"
        ) from None
    if (found := client._server_ray_version) != ray.__version__:
        log.warning(
            "%s: the cluster runs Ray %s, this medray is made for %s", asked, found, ray.__version__
        )
    return client


def nodes_of(client: "JobSubmissionClient") -> list[dict[str, Any]]:
    """What the dashboard tells of the nodes; its own page asks the same."""
    answer = client._do_request("GET", "/nodes?view=summary")
    summary: list[dict[str, Any]] = (
        answer.json()["data"]["summary"] if answer.status_code == 200 else []
    )
    return summary
