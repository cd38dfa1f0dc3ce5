"""The audit log: one line per request at the end of a file that only this user of the machine reads."""

import logging
import os
from pathlib import Path

from ray import serve

from medray.errors import ConfigError, ServingError
from medray.storage.private import make_folder

log = logging.getLogger("medray.audit")
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class AppendHandler(logging.Handler):
    """Writes each line at once, so that several replicas share a file; it is opened anew for each, so that it may be rotated."""

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


def open_log(path: str | None) -> None:
    """Have this replica's lines go to a file, or where it is None to Serve's own files."""
    log.propagate = path is None
    if path is None:
        return
    try:
        file = Path(path).expanduser()
        make_folder(file.parent, "audit_log")
        handler = AppendHandler(file)
    except (ConfigError, OSError, RuntimeError) as err:  # RuntimeError: there is no home folder
        raise ServingError(f"audit_log {path}: cannot be written: {err}; null leaves it to Serve's own files") from None
    replica = serve.get_replica_context().replica_id
    name = f"{replica.deployment_id.app_name}_{replica.deployment_id.name} {replica.unique_id}"
    handler.setFormatter(logging.Formatter(f"%(levelname)s %(asctime)s {name} -- %(message)s"))
    log.handlers = [handler]
