"""The Serve application, from its options to an address. `build` is what Serve's YAML names as
`import_path`; `serving` starts it from this process.

It has one ingress, and a deployment per release, or per engine that several share.
"""

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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import LoggingConfig

from medray.client import Client
from medray.errors import ArtifactError, ConfigError, ServingError
from medray.registry.registry import Registry
from medray.runtime import cluster
from medray.serving import front
from medray.serving.auth import check_address, is_loopback
from medray.serving.ingress import Ingress
from medray.serving.replica import HeadReplica
from medray.serving.schemas import CHAT_PATH, AppOptions
from medray.serving.vllm import Group, groups
from medray.storage import checkpoint, files
from medray.tasks.base.route import routes_of

log = logging.getLogger(__name__)
QUIET = LoggingConfig(enable_access_log=False)  # the audit line says it once, and more
_LOOK_S = 0.2
_PATHS = ("storage_path", "tokens_file", "require_signature", "audit_log")


def build(options: AppOptions) -> serve.Application:
    """Build what `serve run`, `serve deploy` and `medray serve` start. At least one of its releases
    must be there."""
    options = with_whole_paths(options)
    registry = Registry(options.storage_path)
    reasons = {reference: _reason(registry, reference) for reference in options.releases}
    missing = {reference: reason for reference, reason in reasons.items() if reason}
    if len(missing) == len(reasons):
        raise ServingError("; ".join(missing.values()))
    for reason in missing.values():
        log.warning("%s; the others are served, and it is as soon as it is there", reason)
    if options.require_signature:
        for reference in reasons.keys() - missing.keys():
            registry.resolve(reference).check_signature(Path(options.require_signature))
    parts = groups(registry, options, missing)
    for group in parts:
        log.info(
            "%s: answered by %s%s",
            ", ".join(group.references),
            group.engine,
            ", sharing its base" if group.is_shared else "",
        )
    heads: dict[str, serve.Application] = {}
    for group in parts:
        heads |= dict.fromkeys(group.references, _head(group, options))
    ingress = serve.deployment(
        Ingress,
        name="Ingress",
        # the bound is in front of the heads, where it is answered with a typed 429
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=options.limits.timeout_s,
        logging_config=QUIET,
    )
    return ingress.bind(options, heads, missing)


def with_whole_paths(options: AppOptions) -> AppOptions:
    """Replicas start in folders of their own nodes, so a relative path is made whole here, where
    that has one meaning."""
    paths = {
        name: path for name in _PATHS if (path := getattr(options, name)) and _is_relative(path)
    }
    if paths and not cluster.is_in_folder_of_caller():
        name, path = next(iter(paths.items()))
        raise ConfigError(
            (
                f"{name}: {path}: is relative, and a cluster does not know to which folder; write "
                f"the whole path, such as /srv/medray/{path}"
            )
            + (", or s3://BUCKET/PREFIX" if name == "storage_path" else "")
        )
    return options.model_copy(
        update={name: str(files.absolute(path)) for name, path in paths.items()}
    )


def _is_relative(path: str) -> bool:
    path = path.removeprefix("file://")
    return "://" not in path and not Path(path).expanduser().is_absolute()


def _reason(registry: Registry, reference: str) -> str | None:
    """Why a release cannot be served now; None where its record and checkpoint are there."""
    try:
        registry.resolve(reference).folder()
    except ArtifactError as err:
        return str(err)
    return None


def _head(group: Group, options: AppOptions) -> serve.Application:
    """A deployment of its first reference's name: by that name Serve's YAML sets replicas and
    resources."""
    limits = options.limits
    # vLLM answers more with all threads in one replica; it gets what the replicas of its releases
    # would have together.
    is_one = group.engine == "vllm"
    deployment = serve.deployment(
        HeadReplica,
        name=group.references[0],
        num_replicas=1 if is_one else options.replicas,
        max_ongoing_requests=limits.ongoing_requests,
        max_queued_requests=limits.queued_requests,
        health_check_period_s=2,
        health_check_timeout_s=30,  # a load holds the GIL for seconds
        graceful_shutdown_timeout_s=limits.timeout_s,
        ray_actor_options={
            "num_cpus": options.cpus * options.replicas * len(group.references)
            if is_one
            else options.cpus
        },
        logging_config=QUIET,
    )
    return deployment.bind(group, options)


def first_path(references: Iterable[str], storage_path: str) -> str | None:
    """Where the first release that is there answers, by the task in its manifest."""
    for reference in references:
        try:
            folder = Registry(storage_path).resolve(reference).folder()
        except ArtifactError:
            continue
        routes = routes_of(str(checkpoint.read(folder).task.options["name"]))
        return routes[0].path if routes else CHAT_PATH
    return None


@contextmanager
def serving(
    options: AppOptions, *, host: str, port: int, prefix: str = "/", num_cpus: int | None = None
) -> Iterator[str]:
    """The application answers inside the block at the address that it gets; what was started for it
    is stopped after, and nothing else."""
    check_address(host, has_tokens=options.tokens_file is not None or options.open_to_all)
    if not re.fullmatch(r"/|(/[\w.~-]+)+", prefix, re.ASCII):
        raise ServingError(
            f"prefix {prefix}: must be a path of letters, digits, and the signs . _ ~ -; such as "
            "/cancer"
        )
    application = build(options)
    # A name that no other application has: Serve would put this one in the other's place.
    name = f"medray-{port}-{secrets.token_hex(3)}"
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with ExitStack() as stack:
        if not cluster.is_joining():
            stack.enter_context(claim(host, port))  # before the seconds that Ray takes to start
        started = stack.enter_context(cluster.start_cluster(num_cpus=num_cpus))
        http = _running()
        if http is None:
            if started.is_joined:
                stack.enter_context(claim(host, port))
                stack.callback(_end_serve)
            serve.start(
                proxy_location="HeadOnly",
                http_options={
                    "host": host,
                    "port": port,
                    "request_timeout_s": 2 * options.limits.timeout_s,
                },
                logging_config=QUIET,
                controller_options={
                    "runtime_env": {"env_vars": front.environment(options.limits.body_bytes)}
                },
            )
        else:
            _check_beside(http, host, port, prefix)
        stack.callback(serve.delete, name)  # drained
        _run(application, name, prefix)
        head = ray.get_runtime_context().gcs_address.rpartition(":")[0]
        if started.is_joined and is_loopback(host) and not is_loopback(head):
            log.warning(
                "%s is an address of the cluster's head, %s, and answers there alone", host, head
            )
        yield f"http://{host}:{port}{prefix.rstrip('/')}"


def _run(application: serve.Application, name: str, prefix: str) -> None:
    """Run as `serve.run` does, and raise a failure at once with its reason, which `serve.run` does
    not give."""
    serve.run_many(
        [serve.RunTarget(application, name, prefix)], wait_for_applications_running=False
    )
    client = _get_global_client()
    while (details := client.get_serve_details()["applications"][name])["status"] != "RUNNING":
        for deployment, state in details["deployments"].items():
            reason = state["message"].strip().rpartition("\n")[2]
            # An error of ours is not of the kind that passes when Serve starts a replica again.
            if reason.startswith("medray.errors.") or state["status"] == "DEPLOY_FAILED":
                raise ServingError(
                    f"{deployment}: its replica does not start: "
                    f"{reason.removeprefix('medray.errors.')}"
                )
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
            f"{host}:{port}: the cluster's Serve listens at {http.host}:{http.port}, and a cluster "
            "has one; "
            f"give --host {http.host} --port {http.port} to answer there beside others"
        )
    for name, details in _get_global_client().get_serve_details()["applications"].items():
        if details["route_prefix"] == prefix and details["status"] != "DELETING":
            raise ServingError(
                f"{host}:{port}{prefix}: application {name} of the cluster's Serve answers there; "
                "give another --prefix"
            )


@contextmanager
def claim(host: str, port: int) -> Iterator[None]:
    """Check that the address is free, and keep other starts of this user from it inside the block.

    The kernel would not refuse it: Serve's proxy shares its port (SO_REUSEPORT), and each would get
    the other's requests."""
    with (cluster.private_folder() / f"port-{port}").open("w") as file:
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
    """In a cluster that was joined, where others may have come to the Serve that was started
    here."""
    if _running() and not serve.status().applications:
        serve.shutdown()


def show(reference: str, *, storage_path: str, texts: Sequence[str], keep: bool) -> None:
    """Serve a release on loopback, and print requests with their answers, as the quickstart ends.
    With `keep` until Ctrl-C."""
    options = AppOptions(releases=(reference,), storage_path=str(files.absolute(storage_path)))
    port = cluster.free_port(8000)
    start = time.monotonic()
    with serving(options, host="127.0.0.1", port=port) as url:
        print(
            f"\n{reference} is served at {url} after {time.monotonic() - start:.0f} s; documented "
            f"at {url}/docs"
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
            print("it stays up until Ctrl-C", flush=True)
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                print("stopping", flush=True)
