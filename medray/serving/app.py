"""The Ray Serve application. Serve's YAML names `build` as `import_path`; `serving` starts the
application from this process.

It has one ingress, and one deployment per release or per engine that several releases share; or a
single deployment that is both.
"""

import errno
import fcntl
import json
import logging
import re
import secrets
import shlex
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import ray
from ray import serve
from ray._private.state import actors
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client

from medray.client import Client
from medray.config.addresses import is_loopback
from medray.errors import ArtifactError, ServingError
from medray.registry.registry import Registry
from medray.runtime import cluster, session_files
from medray.serving import front, haproxy
from medray.serving.auth import check_address
from medray.serving.deployments import QUIET, Deployments
from medray.serving.schemas import AppOptions, path_of
from medray.storage import checkpoint, files

log = logging.getLogger(__name__)
_POLL_S = 0.2
_CRASH = "RuntimeError: HAProxy crashed during startup: "


def build(options: AppOptions) -> serve.Application:
    """Return the application that `serve run`, `serve deploy` and `medray serve` start. At least
    one of its releases must exist."""
    gpus = ray.cluster_resources().get("GPU", 0.0) if ray.is_initialized() else 0.0
    return Deployments.of(options).application(
        gpus, has_haproxy=haproxy.is_in_front(), num_replicas=None
    )


def first_path(references: Iterable[str], storage_path: str) -> str | None:
    """Return the path of the first release that exists, by the task in its manifest."""
    for reference in references:
        try:
            folder = Registry(storage_path).resolve(reference).folder()
        except ArtifactError:
            continue
        return path_of(str(checkpoint.read(folder).task.options["name"]))
    return None


@contextmanager
def serving(
    options: AppOptions, *, host: str, port: int, prefix: str = "/", num_cpus: int | None = None
) -> Iterator[str]:
    """Serve the application inside the block and yield its URL. Afterwards, stop what was started
    for it and nothing else."""
    check_address(host, has_tokens=options.tokens_file is not None or options.open_to_all)
    if not re.fullmatch(r"/|(/[\w.~-]+)+", prefix, re.ASCII):
        raise ServingError(
            f"prefix {prefix}: is not a path of letters, digits and . _ ~ -; give one such as "
            "/cancer"
        )
    deployments = Deployments.of(options)
    # The name is unique, because Serve replaces an application of the same name.
    name = f"medray-{port}-{secrets.token_hex(3)}"
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with ExitStack() as stack:
        if not cluster.is_joining():
            stack.enter_context(claim(host, port))  # before Ray starts, which takes seconds
        folder = tempfile.TemporaryDirectory(dir=session_files.private_folder(), prefix="h")
        place = Path(stack.enter_context(folder))
        session = stack.enter_context(cluster.start_cluster(num_cpus=num_cpus))
        http = _running()
        if http is None:
            if session.is_joined:
                stack.enter_context(claim(host, port))
                stack.callback(_end_serve)
            # The nodes of a cluster may have medray at other places.
            variables = (
                {} if session.is_joined else haproxy.environment(options.limits, place, host)
            )
            start_serve(
                "127.0.0.1" if variables else host,
                port,
                timeout_s=2 * options.limits.timeout_s,
                variables=front.environment(options.limits.body_bytes) | variables,
            )
        else:
            _check_beside(http, host, port, prefix)
        stack.enter_context(haproxy.announcement(_has_haproxy()))
        stack.callback(serve.delete, name)  # it drains the replicas
        application = deployments.application(
            session.gpus, has_haproxy=haproxy.is_in_front(), num_replicas=options.replicas
        )
        _run(application, name, prefix)
        head = ray.get_runtime_context().gcs_address.rpartition(":")[0]
        if session.is_joined and is_loopback(host) and not is_loopback(head):
            log.warning(
                "%s: is loopback of the cluster's head node, %s; only that node can reach it",
                host,
                head,
            )
        yield url_of(host, port, prefix)


def start_serve(host: str, port: int, *, timeout_s: float, variables: Mapping[str, str]) -> None:
    """Start Serve with its proxy. Raise the reason if that does not start, as on a port that was
    taken since it was checked."""
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port, "request_timeout_s": timeout_s},
            logging_config=QUIET,
            controller_options={"runtime_env": {"env_vars": dict(variables)}},
        )
    except (RayError, TimeoutError) as err:
        lines = str(err).strip().splitlines() or [type(err).__name__]
        # HAProxy's first alert is the cause of the others.
        alerts = [line.partition(" : ")[2] for line in lines if line.startswith("[ALERT]")]
        reason = alerts[0] if alerts else lines[-1].removeprefix(_CRASH)
        raise ServingError(
            f"port {port}: the proxy did not start: {reason}; start it again, or give another "
            "--port"
        ) from None


def url_of(host: str, port: int, prefix: str = "/") -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{prefix.rstrip('/')}"


def _run(application: serve.Application, name: str, prefix: str) -> None:
    """Run the application as `serve.run` does, but raise a failure at once and with its reason."""
    serve.run_many(
        [serve.RunTarget(application, name, prefix)], wait_for_applications_running=False
    )
    client = _get_global_client()
    while (details := client.get_serve_details()["applications"][name])["status"] != "RUNNING":
        for deployment, state in details["deployments"].items():
            reason = state["message"].strip().rpartition("\n")[2]
            # An error of medray does not go away when Serve restarts the replica.
            if reason.startswith("medray.errors.") or state["status"] == "DEPLOY_FAILED":
                raise ServingError(
                    f"{deployment}: its replica did not start: "
                    f"{reason.removeprefix('medray.errors.')}"
                )
        if details["status"] == "DEPLOY_FAILED":
            raise ServingError(f"{', '.join(details['deployments'])}: {details['message'].strip()}")
        time.sleep(_POLL_S)
    client.wait_for_proxies_serving()


def _running() -> HTTPOptions | None:
    """Return where the cluster's Serve listens, or None if it runs none."""
    client = _get_global_client(raise_if_no_controller_running=False)
    return client.http_config if client else None


def _has_haproxy() -> bool:
    return any(
        actor["ActorClassName"] == "HAProxyManager" and actor["State"] == "ALIVE"
        for actor in actors().values()
    )


def _check_beside(http: HTTPOptions, host: str, port: int, prefix: str) -> None:
    """Raise if this application cannot join the cluster's Serve, which has one address that all
    applications share by prefix."""
    if (http.host, http.port) != (host, port):
        raise ServingError(
            f"{host}:{port}: the cluster's only Serve listens at {http.host}:{http.port}; give "
            f"--host {http.host} --port {http.port} to serve beside its other applications"
        )
    for name, details in _get_global_client().get_serve_details()["applications"].items():
        if details["route_prefix"] == prefix and details["status"] != "DELETING":
            raise ServingError(
                f"{host}:{port}{prefix}: Serve's application {name} has this address; "
                "give another --prefix"
            )


@contextmanager
def claim(host: str, port: int) -> Iterator[None]:
    """Check that the address is free, and lock it against this user's other services.

    The kernel does not refuse a second listener: Serve's proxy shares its port (SO_REUSEPORT), so
    each service would get requests of the other."""
    with (session_files.private_folder() / f"port-{port}").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
            ).close()
        except OSError as err:
            is_taken = err.errno in (errno.EWOULDBLOCK, errno.EADDRINUSE)
            reason = (
                "another process listens there; stop it, or"
                if is_taken
                else f"{str(err.strerror).partition(' (')[0]};"
            )
            raise ServingError(f"{host}:{port}: {reason} give another --host or --port") from None
        yield


def _end_serve() -> None:
    """Shut down the Serve that was started in a joined cluster, unless others deployed to it."""
    if _running() and not serve.status().applications:
        serve.shutdown()


def show(reference: str, *, storage_path: str, texts: Sequence[str], keep: bool) -> None:
    """Serve a release on loopback, and print a request and its answer per text. With `keep`, wait
    for Ctrl-C."""
    options = AppOptions(releases=(reference,), storage_path=str(files.absolute(storage_path)))
    port = cluster.free_port(8000)
    start = time.monotonic()
    with serving(options, host="127.0.0.1", port=port) as url:
        print(
            f"\n{reference} is served at {url} after {time.monotonic() - start:.0f} s; its API is "
            f"documented at {url}/docs"
        )
        for text in texts:
            body = shlex.quote(json.dumps({"text": text}))
            print(f"curl {url}/v1/classify -H 'content-type: application/json' -d {body}")
            response = Client(url).classify([text])
            answer = response.predictions[0]
            print(
                f"  {response.release}@{response.version}: {answer.label}, confidence "
                f"{answer.confidence:.3f}",
                flush=True,
            )
        if keep:
            print("press Ctrl-C to stop it", flush=True)
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                print("stopping", flush=True)
