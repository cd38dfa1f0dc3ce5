"""Serving from this process: the application in a cluster, and a clean end of what was started for it."""

import json
import logging
import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ray import serve

from medray import storage
from medray.client import Client
from medray.runtime import free_port, start_cluster
from medray.serving.addresses import check_address
from medray.serving.app import QUIET, build
from medray.serving.schemas import AppOptions

NAME = "medray"


@contextmanager
def serving(options: AppOptions, *, host: str, port: int, num_cpus: int | None = None) -> Iterator[None]:
    """The application answers inside the block; what was started for it is stopped after."""
    check_address(host, guarded=options.tokens_file is not None or options.open_to_all)
    application = build(options)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with start_cluster(num_cpus=num_cpus):
        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": host, "port": port, "request_timeout_s": 2 * options.limits.timeout_s},
                logging_config=QUIET,
            )
            serve.run(application, name=NAME)
            yield
        finally:
            serve.delete(NAME)  # drained; Serve itself ends with its cluster, where others may be served


def show(reference: str, *, storage_path: str, texts: Sequence[str], keep: bool) -> None:
    """Serve a release on loopback, ask it, and say how: the end of the quickstart. With `keep` until Ctrl-C."""
    options = AppOptions(releases=(reference,), storage_path=str(storage.absolute(storage_path)))
    port = free_port(8000)
    url = f"http://127.0.0.1:{port}"
    start = time.monotonic()
    with serving(options, host="127.0.0.1", port=port):
        print(f"\n{reference} is served at {url} after {time.monotonic() - start:.0f} s; documented at {url}/docs")
        for text in texts:
            body = shlex.quote(json.dumps({"text": text}))
            print(f"curl {url}/v1/classify -H 'content-type: application/json' -d {body}")
            found = Client(url).classify([text])
            answer = found.predictions[0]
            print(f"  {found.release}@{found.version}: {answer.label}, confidence {answer.confidence:.3f}", flush=True)
        if keep:
            print("it stays up until Ctrl-C", flush=True)
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                print("stopping", flush=True)
