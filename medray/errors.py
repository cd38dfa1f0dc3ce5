"""The errors medray raises. They cross processes, so each is constructed from its message alone."""

import difflib
from collections.abc import Iterable
from itertools import islice
from typing import ClassVar

from medray.redaction import redact

_MOST_SHOWN = 80  # characters of a name
_MOST_COMPARED = 1000  # names


class MedrayError(Exception):
    """Base of every error that a user can act on; the command line prints its message and exits
    non-zero.

    Messages are printed, logged and kept in records, so none holds a secret.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))

    exit_status: ClassVar[int] = 1


class ConfigError(MedrayError, ValueError):
    """What was asked for cannot be: an unknown key or name, or settings that exclude each other."""


class DataError(MedrayError, ValueError):
    """The data cannot be used as asked; the message names file and line."""


class ArtifactError(MedrayError, RuntimeError):
    """A checkpoint, release or base model is missing, incomplete or not what its manifest says."""


class UnreachableError(ArtifactError):
    """What may be whole could not be read by this user, or not now."""


class TrialError(MedrayError, RuntimeError):
    """A trial cannot go on."""


class GateError(MedrayError, RuntimeError):
    """The work was done, and a rule of its settings forbids what would follow, such as
    publishing."""

    exit_status: ClassVar[int] = 3


class DiskFullError(MedrayError, RuntimeError):
    """There is no room for what must be written; nothing is wrong with a trial, and a study goes on
    once there is."""


class ServingError(MedrayError, RuntimeError):
    """A deployment cannot serve what it was asked to."""


def allowed(name: object, names: Iterable[str]) -> str:
    """The half sentence that tells what a wrong name could have been."""
    choices = sorted(set(names))
    if not choices:
        return "nothing is allowed here"
    shown = [
        choice if len(choice) <= _MOST_SHOWN else f"{choice[: _MOST_SHOWN - 3]}..."
        for choice in choices[:20]
    ]
    return (
        f"allowed: {', '.join(shown)}"
        + (f" and {len(choices) - 20} more" if len(choices) > 20 else "")
        + nearest(name, choices)
    )


def nearest(name: object, names: Iterable[str]) -> str:
    """The question whether another name was meant, where one is like it."""
    near = difflib.get_close_matches(
        str(name)[:_MOST_SHOWN], islice(names, _MOST_COMPARED), n=1, cutoff=0.6
    )
    return f"; did you mean {near[0]!r:.{_MOST_SHOWN}}?" if near else ""
