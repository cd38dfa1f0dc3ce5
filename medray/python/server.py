"""`medray.serve`: a service for the length of a block."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medray.client import Client
from medray.config.schema import validate
from medray.errors import ConfigError
from medray.storage import files


@contextmanager
def serve(
    *references: str, storage_path: str | Path = "runs", port: int = 8000, **options: Any
) -> Iterator[Client]:
    """Serve releases over HTTP inside a `with` block, which gets a client of the service.

    It listens on loopback, and ends with the block. It starts a Ray of its own, or joins the one
    that `RAY_ADDRESS` names. The options are those of a Serve YAML, such as `precision` or
    `replicas`.

    `with medray.serve("cancer@best") as client: client.classify(["…"])`"""
    from medray.serving.app import serving
    from medray.serving.schemas import AppOptions

    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 2**16:
        raise ConfigError(f"medray.serve: port {port!r:.60}: give a number from 1 to 65535")
    storage_path = files.check_place(storage_path, "storage_path")
    cores = len(os.sched_getaffinity(0))
    place = storage_path if "://" in storage_path else str(files.absolute(storage_path))
    raw = {
        "releases": list(references),
        "storage_path": place,
        "cpus": max(1, cores // max(1, len(references))),
        **options,
    }
    app = validate(AppOptions, raw, where="medray.serve")
    num_cpus = max(cores, round(app.cpus * app.replicas * len(references)))
    with serving(app, host="127.0.0.1", port=port, num_cpus=num_cpus) as url:
        yield Client(url)
