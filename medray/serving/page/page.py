"""The page at `/`: one file whose sheet and script are inside it, under a policy that lets nothing
else in. It holds no secret: it is shown before a token is known."""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources


def is_wanted(headers: Mapping[str, str]) -> bool:
    """Browsers name HTML; curl and clients take anything, and get JSON."""
    return "text/html" in headers.get("accept", "")


_SCRIPTS = (
    "page.js",
    "page_form.js",
    "page_answers.js",
    "page_talk.js",
)  # the first one starts; the others hold functions alone


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
