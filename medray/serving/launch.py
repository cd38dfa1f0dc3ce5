"""Serving from this process: the application in a cluster, and a clean end of what was started for it."""

import errno
import fcntl
import json
import logging
import re
import secrets
import shlex
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client

from medray.client import Client
from medray.errors import ServingError
from medray.runtime.cluster import free_port, is_joining, private_folder, start_cluster
from medray.serving import front
from medray.serving.app import QUIET, build
from medray.serving.auth import check_address, is_loopback
from medray.serving.schemas import AppOptions
from medray.storage import files

log = logging.getLogger(__name__)
_LOOK_S = 0.2


@contextmanager
def serving(options: AppOptions, *, host: str, port: int, prefix: str = "/", num_cpus: int | None = None) -> Iterator[str]:
    """The application answers inside the block at the address that it gets; what was started for it is stopped after, and nothing else."""
    check_address(host, guarded=options.tokens_file is not None or options.open_to_all)
    if not re.fullmatch(r"/|(/[\w.~-]+)+", prefix, re.ASCII):
        raise ServingError(f"prefix {prefix}: must be a path of letters, digits, and the signs . _ ~ -; such as /cancer")
    application = build(options)
    # A name that no other application has: Serve would put this one in the other's place.
    name = f"medray-{port}-{secrets.token_hex(3)}"
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with ExitStack() as stack:
        if not is_joining():
            stack.enter_context(_claim(host, port))  # before the seconds that Ray takes to start
        cluster = stack.enter_context(start_cluster(num_cpus=num_cpus))
        http = _running()
        if http is None:
            if cluster.is_joined:
                stack.enter_context(_claim(host, port))
                stack.callback(_end_serve)
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": host, "port": port, "request_timeout_s": 2 * options.limits.timeout_s},
                logging_config=QUIET,
                controller_options={"runtime_env": {"env_vars": front.environment(options.limits.body_bytes)}},
            )
        else:
            _check_beside(http, host, port, prefix)
        stack.callback(serve.delete, name)  # drained
        _run(application, name, prefix)
        head = ray.get_runtime_context().gcs_address.rpartition(":")[0]
        if cluster.is_joined and is_loopback(host) and not is_loopback(head):
            log.warning("%s is an address of the cluster's head, %s, and answers there alone", host, head)
        yield f"http://{host}:{port}{prefix.rstrip('/')}"


def _run(application: serve.Application, name: str, prefix: str) -> None:
    """As `serve.run`, which says of a failure neither why nor, for some minutes, that it is one."""
    serve.run_many([serve.RunTarget(application, name, prefix)], wait_for_applications_running=False)
    client = _get_global_client()
    while (details := client.get_serve_details()["applications"][name])["status"] != "RUNNING":
        for deployment, found in details["deployments"].items():
            reason = found["message"].strip().rpartition("\n")[2]
            # An error of ours is not of the kind that passes when Serve starts a replica again.
            if reason.startswith("medray.errors.") or found["status"] == "DEPLOY_FAILED":
                raise ServingError(f"{deployment}: its replica does not start: {reason.removeprefix('medray.errors.')}")
        if details["status"] == "DEPLOY_FAILED":
            raise ServingError(f"{', '.join(details['deployments'])}: {details['message'].strip()}")
        time.sleep(_LOOK_S)
    client.wait_for_proxies_serving()


def _running() -> HTTPOptions | None:
    """Where the cluster's Serve listens; None where there is no Serve."""
    client = _get_global_client(raise_if_no_controller_running=False)
    return client.http_config if client else None


def _check_beside(http: HTTPOptions, host: str, port: int, prefix: str) -> None:
    """A cluster has one Serve, with one address, whose applications share it by their prefixes."""
    if (http.host, http.port) != (host, port):
        raise ServingError(
            f"{host}:{port}: the cluster's Serve listens at {http.host}:{http.port}, and a cluster has one; "
            f"give --host {http.host} --port {http.port} to answer there beside others"
        )
    for name, details in _get_global_client().get_serve_details()["applications"].items():
        if details["route_prefix"] == prefix and details["status"] != "DELETING":
            raise ServingError(f"{host}:{port}{prefix}: application {name} of the cluster's Serve answers there; give another --prefix")


@contextmanager
def _claim(host: str, port: int) -> Iterator[None]:
    """Nobody listens there, and no other start of this user comes to it for the length of the block.

    The kernel would not refuse it: Serve's proxy shares its port (SO_REUSEPORT), and each would get the other's requests.
    """
    with (private_folder() / f"port-{port}").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
        except OSError as err:
            is_taken = err.errno in (errno.EWOULDBLOCK, errno.EADDRINUSE)
            reason = "another process listens there; stop it, or" if is_taken else f"{str(err.strerror).partition(' (')[0]};"
            raise ServingError(f"{host}:{port}: {reason} give another --host or --port") from None
        yield


def _end_serve() -> None:
    """In a cluster that was joined, where others may have come to the Serve that was started here."""
    if _running() and not serve.status().applications:
        serve.shutdown()


def show(reference: str, *, storage_path: str, texts: Sequence[str], keep: bool) -> None:
    """Serve a release on loopback, ask it, and say how: the end of the quickstart. With `keep` until Ctrl-C."""
    options = AppOptions(releases=(reference,), storage_path=str(files.absolute(storage_path)))
    port = free_port(8000)
    start = time.monotonic()
    with serving(options, host="127.0.0.1", port=port) as url:
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
