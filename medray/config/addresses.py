"""Addresses whose secrets are named and not written: `${env:NAME}` and `${file:PATH}`, replaced for
the moment of their use."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from medray.errors import ConfigError, MedrayError
from medray.errors.redaction import MARK, REFERENCE, hide, redact

_MOST_CHARACTERS = 1 << 14
_BEFORE_HOST = re.compile(r"(?:\$\{[^{}\n]+\}|[^/?#\s$])*@")
_HIDDEN = re.compile(rf"(?:[:/]{re.escape(MARK)}@)|(?:[?&#]{re.escape(MARK)}$)")


def has_reference(address: str) -> bool:
    return REFERENCE.search(address) is not None


@contextmanager
def resolved(address: str) -> Iterator[str]:
    """The address with its secrets, for the length of a block; no error that leaves the block
    repeats them."""
    if _HIDDEN.search(address):
        raise ConfigError(
            f"{address}: was stored without its secret ({MARK}); give the whole address again "
            "(data.format.path=ADDRESS),"
            " or name the secret in it: ${env:NAME} or ${file:PATH}"
        )
    secrets: list[str] = []
    whole = _expanded(address, secrets)
    if whole != address or redact(whole) != whole:
        secrets += _secrets(whole)
    try:
        yield whole
    except MedrayError as err:
        raise type(err)(hide(str(err), secrets)) from None


def comparable(address: str) -> str:
    """The same for two addresses of one place: references are replaced where that can be done,
    secrets are left out."""
    try:
        return redact(_expanded(address, []))
    except ConfigError:
        return redact(address)


def _expanded(address: str, secrets: list[str]) -> str:
    """The address with each reference replaced, before the host as an address writes it; what was
    put in is added to `secrets`."""

    def value(match: re.Match[str]) -> str:
        secrets.append(_read(address, match["kind"], match["name"]))
        is_before_host = "://" in address[: match.start()] and _BEFORE_HOST.match(
            address, match.end()
        )
        return quote(secrets[-1], safe="") if is_before_host else secrets[-1]

    return REFERENCE.sub(value, address)


def _read(address: str, kind: str, name: str) -> str:
    if kind == "env":
        where, value = f"the environment variable {name}", os.environ.get(name)
        if value is None:
            raise ConfigError(f"{redact(address)}: {where} is not set; set it where the study runs")
    else:
        where = f"the file {name}"
        try:
            with Path(name).expanduser().open(encoding="utf-8") as file:
                value = file.read(_MOST_CHARACTERS)
        except (OSError, ValueError) as err:  # ValueError: no text, or no path
            reason = (err.strerror if isinstance(err, OSError) else None) or "it is not text"
            raise ConfigError(
                f"{redact(address)}: {where} cannot be read: {reason}; it must be there where the "
                "study runs"
            ) from None
    if len(value.split()) != 1 or len(value) == _MOST_CHARACTERS:
        raise ConfigError(
            f"{redact(address)}: {where} does not hold one word, as a secret of an address is; "
            "write nothing else into it"
        )
    return value.strip()


def _secrets(address: str) -> list[str]:
    """What of an address must not be repeated: as it is written, and as it is sent."""
    try:
        parts = urlsplit(address)
        found = [parts.password or "", parts.query]
    except ValueError:
        return [address]
    return [form for secret in found for form in (secret, unquote(secret))]
