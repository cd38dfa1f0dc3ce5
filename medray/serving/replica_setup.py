"""Set-up of each Serve replica's process: where its log and the audit log go, and which address it
listens at."""

import logging
import os
from pathlib import Path

import ray
from ray import serve
from ray.serve._private import replica as serve_replica

from medray.config.addresses import is_loopback
from medray.errors import ConfigError, ServingError
from medray.storage.private import make_folder

audit = logging.getLogger("medray.audit")  # one line per request
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class AppendHandler(logging.Handler):
    """Writes each line in one call to a file that only this user can read.

    Several replicas can share the file. It is opened for each line, so that it can be rotated.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._append(b"")

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._append(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except OSError:
            self.handleError(record)

    def _append(self, line: bytes) -> None:
        file = os.open(self.path, _FLAGS, 0o600)
        try:
            os.write(file, line)
        finally:
            os.close(file)


def open_audit_log(path: str | None) -> None:
    """Write this replica's audit log to a file, or to Serve's own log files if `path` is None."""
    audit.propagate = path is None
    if path is None:
        return
    try:
        file = Path(path).expanduser()
        make_folder(file.parent, "audit_log")
        handler = AppendHandler(file)
    except (ConfigError, OSError, RuntimeError) as err:  # RuntimeError: no home folder
        raise ServingError(
            f"audit_log {path}: cannot be written: {err}; change it, or set null for Serve's files"
        ) from None
    replica = serve.get_replica_context().replica_id
    name = f"{replica.deployment_id.app_name}_{replica.deployment_id.name} {replica.unique_id}"
    handler.setFormatter(logging.Formatter(f"%(levelname)s %(asctime)s {name} -- %(message)s"))
    audit.handlers = [handler]


def prepare() -> None:
    """Set up logging and addresses, as every replica needs them."""
    _log_with_serve()
    if is_loopback(ray.util.get_node_ip_address()):
        _listen_on_loopback()


def _log_with_serve() -> None:
    """Send medray's own log lines where Serve's go: to the replica's file and the driver."""
    ours = logging.getLogger("medray")
    ours.setLevel(logging.INFO)
    for handler in logging.getLogger("ray.serve").handlers:
        if handler not in ours.handlers:
            ours.addHandler(handler)


def _listen_on_loopback() -> None:
    """Bind each replica's gRPC port to loopback. Ray 2.60 opens it on all interfaces after the
    constructor, and medray does not use it."""
    bind = serve_replica.add_port_to_grpc_server
    serve_replica.add_port_to_grpc_server = lambda server, address: bind(
        server, address.replace("[::]", "127.0.0.1")
    )
