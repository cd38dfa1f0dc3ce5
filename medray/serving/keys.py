"""Tokens that may ask: a file of their SHA-256, so that reading the file lets nobody in."""

import hashlib
import hmac
import re
from collections.abc import Iterable
from pathlib import Path

from medray.errors import ConfigError

_DIGEST = re.compile(r"[0-9a-f]{64}")


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def read(path: Path) -> frozenset[str]:
    """Digests of a file: one a line, blank lines and `#` comments aside."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except OSError as err:
        raise ConfigError(f"{path}: the tokens file cannot be read: {err.strerror}") from None
    found = [(number, line.partition("#")[0].strip().lower()) for number, line in enumerate(lines, 1)]
    for number, line in found:
        if line and not _DIGEST.fullmatch(line):
            raise ConfigError(f"{path}:{number}: is not a SHA-256 in 64 hexadecimal digits; make one with `sha256sum`")
    digests = frozenset(line for _, line in found if line)
    if not digests:
        raise ConfigError(f"{path}: holds no token, so nobody could ask")
    return digests


def admits(digests: Iterable[str], token: str) -> bool:
    """Every digest is compared, in a time that does not tell how much of it agrees."""
    asked = digest(token)
    return sum(hmac.compare_digest(asked, known) for known in digests) > 0
