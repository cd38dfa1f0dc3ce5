"""Addresses: whether they stay on this machine, and secrets in them that are named and not written:
`${env:NAME}` and `${file:PATH}`, replaced for the moment of their use."""

import ipaddress
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


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def has_reference(address: str) -> bool:
    return REFERENCE.search(address) is not None


@contextmanager
def resolve(address: str) -> Iterator[str]:
    """Yield the address with its secrets. No error that leaves the block repeats them."""
    if _HIDDEN.search(address):
        raise ConfigError(
            f"{address}: was stored without its secret ({MARK}); give the whole address again "
            "(data.format.path=ADDRESS),"
            " or name the secret in it: ${env:NAME} or ${file:PATH}"
        )
    secrets: list[str] = []
    whole = _expand(address, secrets)
    if whole != address or redact(whole) != whole:
        secrets += _secrets(whole)
    try:
        yield whole
    except MedrayError as err:
        raise type(err)(hide(str(err), secrets)) from None


def comparable(address: str) -> str:
    """Return a text that is equal for two addresses of one place: without secrets, and with
    references replaced where they can be read."""
    try:
        return redact(_expand(address, []))
    except ConfigError:
        return redact(address)


def _expand(address: str, secrets: list[str]) -> str:
    """Return the address with each reference replaced, and add the values to `secrets`. A value
    before the host is quoted."""

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
            f"{redact(address)}: {where} does not hold exactly one word; "
            "write nothing but the secret into it"
        )
    return value.strip()


def _secrets(address: str) -> list[str]:
    """Return the secrets of an address, as they are written and as they are sent."""
    try:
        parts = urlsplit(address)
        values = [parts.password or "", parts.query]
    except ValueError:
        return [address]
    return [form for secret in values for form in (secret, unquote(secret))]
