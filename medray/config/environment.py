"""What medray reads from environment variables about the process that it runs in."""

import os
from pathlib import Path

# A submitted job has no repository, so the submitter passes the commit of its files.
COMMIT_VARIABLE = "MEDRAY_GIT_COMMIT"


def cache_dir() -> Path:
    """Return the folder of what can be made again: converted bases, copies of remote
    checkpoints."""
    return Path(os.environ.get("MEDRAY_CACHE", "~/.cache/medray")).expanduser()


def is_submitted_job() -> bool:
    """Return whether `ray job submit` started this process."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def submitter_commit() -> str | None:
    """Return the commit that the submitter of this job passed, or None."""
    return os.environ.get(COMMIT_VARIABLE) or None
