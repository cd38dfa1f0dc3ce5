"""Serving from this process: a cluster where there is none, the application in it, and a clean end of both."""

from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray import serve

from medray.serving.addresses import check_address
from medray.serving.app import build
from medray.serving.cluster import start_cluster
from medray.serving.schemas import AppOptions

NAME = "medray"


@contextmanager
def serving(options: AppOptions, *, host: str, port: int, num_cpus: int | None = None) -> Iterator[None]:
    """The application answers inside the block; what was started for it is stopped after."""
    check_address(host, guarded=options.tokens_file is not None or options.open_to_all)
    application = build(options)
    ours = start_cluster(num_cpus=num_cpus)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port, "request_timeout_s": 2 * options.limits.timeout_s})
        serve.run(application, name=NAME)
        yield
    finally:
        if ours:
            serve.shutdown()
            ray.shutdown()
        else:
            serve.delete(NAME)
