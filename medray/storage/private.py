"""Folders of this user that no other user of the machine may write to, whoever came first."""

import contextlib
import os
import stat
from pathlib import Path

from medray.errors import ConfigError


def make_folder(path: Path, setting: str) -> Path:
    """The folder, made with mode 0700 where there is none; refused where another user made it or
    may write to it.

    `setting` names what a user sets to have another folder.
    """
    try:
        for folder in reversed(
            path.parents
        ):  # whoever may write to one could put another folder in the place of ours
            if not folder.exists():
                folder.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
    except OSError as err:
        raise ConfigError(
            f"{path}: cannot be made: {err.strerror}; name another place with {setting}"
        ) from None
    entry = path.lstat()  # a link that another user put there is not followed
    if not stat.S_ISDIR(entry.st_mode):
        raise ConfigError(
            f"{path}: is not a folder; remove it, or name another place with {setting}"
        )
    if entry.st_uid != os.getuid():
        raise ConfigError(
            f"{path}: belongs to another user; name a place of your own with {setting}"
        )
    if entry.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"{path}: others may write to it; remove it, or name another place with {setting}"
        )
    return path
