"""Tokens that may ask: a file of their SHA-256, so that reading the file lets nobody in."""

import hashlib
import hmac
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from medray.errors import ConfigError

_OF_NOTHING = {hashlib.sha256(text).hexdigest() for text in (b"", b"\n")}
_DIGEST = re.compile(r"[0-9a-f]{64}")


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def read(path: Path) -> frozenset[str]:
    """Digests of a file: one a line, blank lines and `#` comments aside."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
        mode = path.expanduser().stat().st_mode
    except OSError as err:
        raise ConfigError(f"{path}: the tokens file cannot be read: {err.strerror}") from None
    if mode & stat.S_IWOTH:
        raise ConfigError(f"{path}: every user of this machine may add a token to it; run `chmod o-w` on it")
    found = [(number, line.partition("#")[0].strip().lower()) for number, line in enumerate(lines, 1)]
    for number, line in found:
        if line and not _DIGEST.fullmatch(line):
            raise ConfigError(f"{path}:{number}: is not a SHA-256 in 64 hexadecimal digits; make one with `sha256sum`")
        if line in _OF_NOTHING:
            raise ConfigError(f"{path}:{number}: is the SHA-256 of an empty token, as of a variable that is not set; make one of a token")
    digests = frozenset(line for _, line in found if line)
    if not digests:
        raise ConfigError(f"{path}: holds no token, so nobody could ask")
    return digests


def admits(digests: Iterable[str], token: str) -> bool:
    """Every digest is compared, in a time that does not tell how much of it agrees. No token is no valid one."""
    asked = digest(token)
    return bool(token) and sum(hmac.compare_digest(asked, known) for known in digests) > 0
