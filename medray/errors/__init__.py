"""The errors that medray raises. They cross processes, so each is constructed from its message
alone."""

import difflib
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import ClassVar

from medray.errors.redaction import redact

_LONGEST_NAME = 80  # characters of a name
_MOST_NAMES = 1000  # names


class MedrayError(Exception):
    """Base of every error that a user can act on; the command line prints its message and exits
    non-zero.

    Messages are printed, logged and stored in records, so secrets in them are masked.
    """

    def __init__(self, message: str) -> None:
        # Half a surrogate pair in a name could not be printed.
        super().__init__(redact(message).encode("utf-8", "backslashreplace").decode())

    exit_status: ClassVar[int] = 1


# The exit status of a command that completed a part of its work, which stays.
PARTIAL_SUCCESS = 4


class ConfigError(MedrayError, ValueError):
    """A setting is wrong: an unknown key or name, or settings that exclude each other."""


class UsageError(ConfigError):
    """The command line is wrong: options exclude each other, or one lacks another."""

    exit_status: ClassVar[int] = 2


class DataError(MedrayError, ValueError):
    """The data cannot be used with these settings. The message names file and line."""


class ArtifactError(MedrayError, RuntimeError):
    """A checkpoint, release or base model is missing, incomplete or differs from its manifest."""


class UnreachableError(ArtifactError):
    """An artifact may be complete, but this user or this moment does not allow reading it."""


class TrialError(MedrayError, RuntimeError):
    """A trial cannot continue."""


class GateError(MedrayError, RuntimeError):
    """The work is complete, but a rule in its settings forbids the next step, such as
    publishing."""

    exit_status: ClassVar[int] = 3


class DiskFullError(MedrayError, RuntimeError):
    """The disk is full. The trial itself is sound, and the study can resume once there is
    space."""


class ServingError(MedrayError, RuntimeError):
    """A deployment cannot serve a request or a release."""


class PromotionError(ServingError):
    """An alias is moved, and not every replica serves its new version."""

    exit_status: ClassVar[int] = PARTIAL_SUCCESS


def suggest(name: object, names: Iterable[str]) -> str:
    """Return the part of an error message that lists the allowed names and the nearest one."""
    choices = sorted(set(names))
    if not choices:
        return "nothing is allowed here"
    choices_text = [
        choice if len(choice) <= _LONGEST_NAME else f"{choice[: _LONGEST_NAME - 3]}..."
        for choice in choices[:20]
    ]
    return (
        f"allowed: {', '.join(choices_text)}"
        + (f" and {len(choices) - 20} more" if len(choices) > 20 else "")
        + nearest(name, choices)
    )


def nearest(name: object, names: Iterable[str]) -> str:
    """Return `; did you mean …?` for the most similar name, or an empty text."""
    matches = difflib.get_close_matches(
        str(name)[:_LONGEST_NAME], islice(names, _MOST_NAMES), n=1, cutoff=0.6
    )
    return f"; did you mean {matches[0]!r:.{_LONGEST_NAME}}?" if matches else ""


def nearest_file(path: str | PathLike[str]) -> str:
    """Return what to do about a path where no file is: `; did you mean …?`, or where it leads."""
    place = Path(path)
    with suppress(OSError):
        if not place.parent.is_dir():
            return f"; there is no folder {place.parent}, so correct the path"
        names = [each.name for each in islice(place.parent.iterdir(), _MOST_NAMES)]
        if matches := difflib.get_close_matches(place.name, names, n=1, cutoff=0.6):
            return f"; did you mean {place.parent / matches[0]}?"
    start = "" if place.is_absolute() else f", which begins at {Path.cwd()}"
    return f"; correct the path{start}"
