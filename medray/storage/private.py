"""Folders that no other user of the machine can write to."""

import contextlib
import os
import stat
from pathlib import Path

from medray.errors import ConfigError


def make_folder(path: Path, setting: str) -> Path:
    """Create the folder with mode 0700 if it is missing. Raise ConfigError if another user owns it
    or may write to it.

    `setting` is the name of the setting that chooses another folder.
    """
    try:
        # A user who may write to a parent could replace our folder.
        for folder in reversed(path.parents):
            if not folder.exists():
                folder.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
    except OSError as err:
        raise ConfigError(
            f"{path}: cannot be created: {err.strerror}; choose another folder with {setting}"
        ) from None
    entry = path.lstat()  # does not follow a link of another user
    if not stat.S_ISDIR(entry.st_mode):
        raise ConfigError(
            f"{path}: is not a folder; remove it, or choose another folder with {setting}"
        )
    if entry.st_uid != os.getuid():
        raise ConfigError(
            f"{path}: belongs to another user; choose a folder of your own with {setting}"
        )
    if entry.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"{path}: other users may write to it; remove it, or choose another folder with "
            f"{setting}"
        )
    return path
