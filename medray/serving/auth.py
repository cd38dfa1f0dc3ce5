"""Access to a service: digests of valid tokens, and the addresses that it may listen at."""

import hashlib
import hmac
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from medray.config.addresses import is_loopback
from medray.errors import ConfigError, ServingError

_EMPTY_DIGESTS = {hashlib.sha256(text).hexdigest() for text in (b"", b"\n")}
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_address(host: str, *, has_tokens: bool) -> None:
    if has_tokens or is_loopback(host):
        return
    raise ServingError(
        f"{host}: other machines can reach this address; set tokens_file (one SHA-256 per line), "
        "set open_to_all: true to serve without tokens, or use 127.0.0.1"
    )


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def read_digests(path: Path) -> frozenset[str]:
    """Return the digests of a tokens file: one per line, without blank lines and `#` comments."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
        mode = path.expanduser().stat().st_mode
    except OSError as err:
        raise ConfigError(f"{path}: the tokens file cannot be read: {err.strerror}") from None
    if mode & stat.S_IWOTH:
        raise ConfigError(
            f"{path}: every user of this machine may write to it; run `chmod o-w {path}`"
        )
    entries = [
        (number, line.partition("#")[0].strip().lower()) for number, line in enumerate(lines, 1)
    ]
    for number, line in entries:
        if line and not _DIGEST.fullmatch(line):
            raise ConfigError(
                f"{path}:{number}: it is not a SHA-256 of 64 hexadecimal digits; make one with "
                "`sha256sum`"
            )
        if line in _EMPTY_DIGESTS:
            raise ConfigError(
                f"{path}:{number}: it is the SHA-256 of an empty token, such as an unset variable; "
                "hash a token instead"
            )
    digests = frozenset(line for _, line in entries if line)
    if not digests:
        raise ConfigError(f"{path}: it holds no token; add the SHA-256 of one")
    return digests


def admits(digests: Iterable[str], token: str) -> bool:
    """Return whether a token is valid. The time of the comparison does not depend on how much of
    a digest matches."""
    candidate = digest(token)
    return bool(token) and sum(hmac.compare_digest(candidate, valid) for valid in digests) > 0
