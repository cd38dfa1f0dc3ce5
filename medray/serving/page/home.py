"""The page at `/`: one HTML document with its style sheet and script inside, under a policy that
allows nothing else. It holds no secret, because it is sent without a token."""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources


def is_wanted(headers: Mapping[str, str]) -> bool:
    """Return whether a client accepts HTML, as browsers do. Other clients get JSON."""
    return "text/html" in headers.get("accept", "")


# The first one runs at once; the others only define functions.
_SCRIPTS = (
    "page.js",
    "page_form.js",
    "page_answers.js",
    "page_talk.js",
    "page_typed.js",
)


@cache
def html() -> str:
    return _file("page.html").replace("/*sheet*/", sheet()).replace("/*script*/", _script())


@cache
def headers() -> dict[str, str]:
    policy = {
        "default-src": "'none'",
        "style-src": digest(sheet()),
        "script-src": digest(_script()),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cache-control": "no-cache",
        "vary": "accept",
    }


def sheet() -> str:
    return _file("page.css")


def _script() -> str:
    return "".join(map(_file, _SCRIPTS))


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _file(name: str) -> str:
    return resources.files("medray.serving.page").joinpath(name).read_text(encoding="utf-8")
