"""Find secrets in text and settings, and put `***` in their place.

This module uses the standard library only, and its time is linear in the length of the text. A
reference (`${env:NAME}`, `${file:PATH}`) is not a secret."""

import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import unquote

MARK = "***"
REFERENCE = re.compile(r"\$\{(?P<kind>env|file):(?P<name>[^{}\n]+)\}")

_HIDDEN_REFERENCE = re.compile(r"\x00(\d{1,9})\x00")
_PORT = r"\d{1,5}(?:[/?#\"',;)\]}\s]|$)"
_USER = re.compile(r"://(?P<name>[^\s/?#<>@:]*)(?P<password>:[^\s/?#<>]*)?@")
# A slash in a password, as in keys of AWS, ends the authority of a URL too early.
# Buckets have no port.
_USER_WITH_SLASH = re.compile(
    rf"(?P<bucket>(?<=s3)|(?<=gs))?://(?!\[)(?P<name>[^\s/?#<>@:]*)(?P<password>:(?(bucket)|(?!{_PORT}))[^\s@]{{1,300}})@"
)
_TAIL = re.compile(r"[?#][^\s'\"<>]+")  # a URL from its query on
_SECRET_NAME = re.compile(
    r"(?:xamz|xgoog).*|sig|key|pwd|pass|auth|jwt|.*(?:signature|token|secret|password|passwd|apikey|accesskey|secretkey|credentials?)"
)
# Parameters beside a signature (S3's older one, CloudFront, Google, Azure, Alibaba). Without them
# two signed forms of one URL are equal.
_BESIDE_SIGNATURE = re.compile(
    r"expires|policy|keypairid|(?:aws|oss)accesskeyid|googleaccessid|s[eprstv]|sr[st]|spr|sip?|sk(?:oid|tid|[tesv])|s[au]oid|scid|sdd"
)
_SECRET_SETTING = re.compile(
    r"credentials?|token|.*(?:password|passwd|secret|apikey|accesskey|secretkey|privatekey|accountkey|accesstoken|authtoken)"
)
_ASSIGNMENT = re.compile(
    r"(?<![A-Za-z])(?P<name>account_?key|shared_?access_?(?:key|signature)|x-(?:amz|goog)-(?:signature|credential|security-token)"
    r"|(?:aws_)?(?:secret_)?(?:access|api|private|secret)[_-]?key|(?:aws_)?(?:access|auth|session|security)[_-]?token"
    r"|client[_-]?secret|password|passwd)(?P<sign> ?= ?)(?P<value>[^\s'\"&;,<>]+)",
    re.IGNORECASE,
)
_FORMS = tuple(  # no pattern matches a word of lower-case letters alone
    (kind, re.compile(pattern, re.DOTALL))
    for kind, pattern in (
        (
            "a private key",
            (
                r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE "
                r"KEY-----|\Z)"
            ),
        ),
        ("a key of AWS", r"(?<![A-Za-z0-9])A[KS]IA[A-Z0-9]{16}(?![A-Za-z0-9])"),
        ("a token of Hugging Face", r"(?<![A-Za-z0-9])hf_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{20,}"),
        (
            "a token of GitHub",
            r"(?<![A-Za-z0-9])(?:gh[opsur]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})",
        ),
        ("a token of GitLab", r"(?<![A-Za-z0-9_-])glpat-[A-Za-z0-9_-]{16,}"),
        ("a token of Slack", r"(?<![A-Za-z0-9_-])xox[abeoprs]-[A-Za-z0-9-]{10,}"),
        (
            "a key of an API",
            r"(?<![A-Za-z0-9_-])sk-(?=[A-Za-z0-9_-]{0,24}?(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{16})[A-Za-z0-9_-]{20,}",
        ),
        ("a key of Google", r"(?<![A-Za-z0-9_-])AIza[A-Za-z0-9_-]{35}"),
        ("a token of Databricks", r"(?<![A-Za-z0-9])dapi[0-9a-f]{32}"),
        (
            "a header with a password",
            (
                r"(?i:authorization[\"']?: ?[\"']?(?:basic|bearer) "
                r")(?=[a-z._~+/-]*[A-Z0-9=])[A-Za-z0-9._~+/=-]{8,}"
            ),
        ),
        (
            "a JSON web token",
            r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",
        ),
    )
)


def redact(text: str) -> str:
    """Return the text without its secrets. Two signed forms of one URL give the same text."""
    return _scan(text)[0]


def redact_settings(settings: Any, name: str = "") -> Any:
    """Return nested settings without their secrets."""
    if isinstance(settings, dict):
        return {key: redact_settings(value, str(key)) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [redact_settings(value, name) for value in settings]
    return _setting(settings, name)[0] if isinstance(settings, str) else settings


def find(settings: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted name of each setting that holds a secret, and the kind of secret."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from find(value, f"{name}.{key}" if name else str(key))
    elif isinstance(settings, list | tuple):
        for place, value in enumerate(settings):
            yield from find(value, f"{name}.{place}")
    elif isinstance(settings, str) and (kinds := _setting(settings, name)[1]):
        yield name, kinds[0]


def hide(text: str, secrets: Iterable[str]) -> str:
    """Return the text without the given secrets and without any other secret."""
    for secret in sorted({secret for secret in secrets if len(secret) > 3}, key=len, reverse=True):
        text = text.replace(secret, MARK)
    return redact(text)


def _setting(value: str, name: str) -> tuple[str, list[str]]:
    is_secret = _SECRET_SETTING.fullmatch(_plain(name.rpartition(".")[2])) is not None
    if is_secret and value not in ("", MARK) and not REFERENCE.fullmatch(value):
        return MARK, ["a secret"]
    return _scan(value)


def _scan(text: str) -> tuple[str, list[str]]:
    """Return the text without its secrets, and their kinds."""
    kinds: list[str] = []
    references: list[str] = []

    def replace(kind: str, instead: str) -> str:
        kinds.append(kind)
        return instead

    def mask(match: re.Match[str]) -> str:
        references.append(match[0])
        return f"\x00{len(references) - 1}\x00"

    def unmask(match: re.Match[str]) -> str:
        return references[int(match[1])] if int(match[1]) < len(references) else match[0]

    def user(match: re.Match[str]) -> str:
        name, password = match["name"], match["password"]
        if password and not _is_open(password[1:]):
            return replace("a password", f"://{name}:{MARK}@")
        is_token = (
            name
            and password is None
            and match.string[max(0, match.start() - 5) : match.start()]
            .lower()
            .endswith(("http", "https"))
        )
        return replace("a token", f"://{MARK}@") if is_token and not _is_open(name) else match[0]

    def tail(match: re.Match[str]) -> str:
        if "=" not in match[0]:
            return match[0]
        parts = re.split(r"[?&;#]", match[0])[1:]
        secret = [_is_secret(part) for part in parts]
        if not any(secret):
            return match[0]
        is_signed = any(_plain(part.partition("=")[0]) in ("sig", "signature") for part in parts)
        rest = [
            part
            for part, out in zip(parts, secret, strict=True)
            if part not in ("", MARK) and not out
        ]
        if is_signed:
            rest = [
                part
                for part in rest
                if not _BESIDE_SIGNATURE.fullmatch(_plain(part.partition("=")[0]))
            ]
        return replace("a signature or token", match[0][0] + "&".join([*rest, MARK]))

    def assignment(match: re.Match[str]) -> str:
        return (
            match[0]
            if _is_open(match["value"])
            else replace("a secret", f"{match['name']}{match['sign']}{MARK}")
        )

    if REFERENCE.search(text):
        text = REFERENCE.sub(mask, text)
    if "://" in text:
        text = _USER_WITH_SLASH.sub(user, _USER.sub(user, text))
    text = _ASSIGNMENT.sub(assignment, _TAIL.sub(tail, text))
    for kind, form in _FORMS:
        if form.search(text):
            text = form.sub(replace(kind, MARK), text)
    return _HIDDEN_REFERENCE.sub(unmask, text) if references else text, kinds


def _is_secret(parameter: str) -> bool:
    """Return whether a query parameter holds a secret, directly or inside a nested URL."""
    name, _, value = parameter.partition("=")
    if _SECRET_NAME.fullmatch(_plain(name)) and not _is_open(value):
        return True
    inner = re.split(r"[?&;#]", unquote(value)) if "%" in value else []
    return any(
        _SECRET_NAME.fullmatch(_plain(part.partition("=")[0]))
        and not _is_open(part.partition("=")[2])
        for part in inner[1:]
    )


def _is_open(value: str) -> bool:
    """Return whether a value needs no mask: it is empty, masked already, or a reference."""
    return value in ("", MARK) or _HIDDEN_REFERENCE.fullmatch(value) is not None


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", unquote(name).lower())
