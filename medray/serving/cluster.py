"""An embedded Ray for one machine, listening on loopback only; where there is a cluster, it is joined."""

import os
import secrets
import socket
from pathlib import Path

import ray
from ray._private import ray_constants


def start_cluster(*, num_cpus: int | None = None) -> bool:
    """Join the cluster of RAY_ADDRESS, or start one here, with Ray's own tokens and without a listener that others reach.

    True where one was started, which the caller then stops.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "1")  # else a dead proxy is noticed after 30 s
    os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S", "3")
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        ray.init(ignore_reinit_error=True, logging_level="warning")
        return False
    # Every listener on 127.0.0.1. The variable reaches Ray's processes; this one read it when it imported ray.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    # ray.init turns its tokens on by itself; RAY_AUTH_MODE set after `import ray` reaches its servers and not this process.
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    token.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not token.exists():
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
    token.chmod(0o600)  # Ray writes it for everybody to read
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(
        address="local", num_cpus=num_cpus, include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=port, logging_level="warning"
    )
    return True
