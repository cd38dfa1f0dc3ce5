"""What medray reads from environment variables about the process that it runs in."""

import os
from pathlib import Path

# Workers and submitted jobs run outside the repository, so their driver passes its commit.
COMMIT_VARIABLE = "MEDRAY_GIT_COMMIT"


def cache_dir() -> Path:
    """Return the folder of what can be made again: converted bases, copies of remote
    checkpoints."""
    return Path(os.environ.get("MEDRAY_CACHE", "~/.cache/medray")).expanduser()


def is_submitted_job() -> bool:
    """Return whether `ray job submit` started this process."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def driver_commit() -> str | None:
    """Return the commit that the driver or the submitter passed, or None."""
    return os.environ.get(COMMIT_VARIABLE) or None
