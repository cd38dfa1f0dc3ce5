"""The files of a Ray that is started here, which belong to this user: its sessions and its
token."""

import contextlib
import os
import shutil
import time
from pathlib import Path

from medray.errors import ConfigError
from medray.storage.private import make_folder

_SESSION_AGE_S = 7 * 24 * 3600.0  # for how long the logs of an ended session stay
# The longest path of a folder of sessions, since a socket's path has at most 107 bytes.
_LONGEST = 107 - len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")


def sessions_folder() -> Path:
    """Return the folder of Ray's sessions. Its parent is private, since Ray opens its own folder to
    all users."""
    sessions = private_folder() / "ray"
    if len(os.fsencode(sessions)) > _LONGEST:
        raise ConfigError(
            f"{sessions}: too long for a socket's path; name a place of at most {_LONGEST - 20} "
            "characters with RAY_TMPDIR"
        )
    return sessions


def private_folder() -> Path:
    """Return this user's own folder for temporary files, in /tmp if TMPDIR is too long for
    sockets."""
    from ray._common.utils import get_default_system_temp_dir

    name, place = f"medray-{os.getuid()}", get_default_system_temp_dir()
    if "RAY_TMPDIR" not in os.environ and len(os.fsencode(f"{place}/{name}/ray")) > _LONGEST:
        place = "/tmp"
    folder = make_folder(Path(place) / name, "RAY_TMPDIR")
    folder.chmod(0o700)
    return folder


def remove_old_sessions(sessions: Path) -> None:
    """Remove sessions without a write for a week, since Ray removes none. A session that still runs
    writes to its logs every minute."""
    for session in sessions.glob("session_2*"):
        with contextlib.suppress(FileNotFoundError):  # another start removes it as well
            if (
                max(path.lstat().st_mtime for path in (session, *session.glob("logs/*")))
                < time.time() - _SESSION_AGE_S
            ):
                shutil.rmtree(session, ignore_errors=True)


def make_token(path: str) -> None:
    """Create Ray's token, readable by its owner alone; Ray would let everybody read it."""
    import secrets

    try:
        token = Path(path).expanduser()
        token.parent.mkdir(parents=True, exist_ok=True)
        if not token.exists():
            os.close(os.open(token, os.O_WRONLY | os.O_CREAT, 0o600))
            token.write_text(secrets.token_hex(32))
        if token.stat().st_uid == os.getuid():  # one that a cluster mounts is left as it is
            token.chmod(0o600)
    except (OSError, RuntimeError) as err:  # a home folder that is read-only, or no home folder
        raise ConfigError(
            f"{path}: Ray's token cannot be kept there: {err}; name a file of yours with "
            "RAY_AUTH_TOKEN_PATH"
        ) from None
