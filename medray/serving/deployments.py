"""The deployments of an application: an ingress, and one per release or per engine that several
releases share; or a single one. They bind what Serve starts, and decide on CPUs and GPUs."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fastapi import FastAPI
from ray import serve
from ray.serve.schema import LoggingConfig

from medray.errors import ArtifactError, ConfigError, ServingError
from medray.registry.registry import Registry
from medray.runtime import cluster
from medray.serving.ingress import Ingress, LocalCalls
from medray.serving.remote_calls import IngressReplica
from medray.serving.replica import ReleaseReplica
from medray.serving.schemas import AppOptions, ReplicaReport
from medray.serving.vllm import ReleaseGroup, groups
from medray.storage import files

log = logging.getLogger(__name__)
QUIET = LoggingConfig(enable_access_log=False)  # the audit log has a line per request already
# Of an ingress, whose own queues are shorter and answer a typed 429.
_HTTP_REQUESTS = 1000
_PATHS = ("storage_path", "tokens_file", "require_signature", "audit_log")


@serve.ingress()
class ReleaseIngress:
    """A replica of a release that answers HTTP itself."""

    def __init__(self, group: ReleaseGroup, options: AppOptions) -> None:
        self.replica = ReleaseReplica(group, options)
        own = serve.get_replica_context().replica_id.deployment_id
        deployment = serve.get_deployment_handle(own.name, own.app_name)
        self.ingress = Ingress(options, LocalCalls(options.limits, self.replica, deployment))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self.ingress.api()

    def check_health(self) -> None:
        self.replica.check_health()

    async def report(self, reference: str) -> ReplicaReport:
        return await self.replica.report(reference)


@dataclass(frozen=True)
class Deployments:
    """The releases of an application by deployment. Its options are checked without Ray."""

    options: AppOptions
    groups: tuple[ReleaseGroup, ...]
    missing: dict[str, str]  # the reason, by reference

    @classmethod
    def of(cls, options: AppOptions) -> Self:
        """Return the deployments. Raise unless at least one release exists."""
        options = with_whole_paths(options)
        registry = Registry(options.storage_path)
        reasons = {reference: _reason(registry, reference) for reference in options.releases}
        missing = {reference: reason for reference, reason in reasons.items() if reason}
        if len(missing) == len(reasons):
            raise ServingError("; ".join(missing.values()))
        for reason in missing.values():
            log.warning("%s; the other releases are served, and this one once it exists", reason)
        if options.require_signature:
            for reference in reasons.keys() - missing.keys():
                registry.resolve(reference).check_signature(Path(options.require_signature))
        parts = groups(registry, options, missing)
        for group in parts:
            log.info(
                "%s: engine %s%s",
                ", ".join(group.references),
                group.engine,
                ", one base shared by its releases" if group.is_shared else "",
            )
        return cls(options, tuple(parts), missing)

    def application(
        self, num_gpus: float, *, has_haproxy: bool, num_replicas: int | None
    ) -> serve.Application:
        """Return the application for a cluster with this number of GPUs. `num_replicas` is the
        number per release, or None if Serve's YAML may set it."""
        if is_one_deployment(self.groups, has_haproxy=has_haproxy, num_replicas=num_replicas):
            return self._deployment(self.groups[0], num_gpus, is_ingress=True)
        deployments: dict[str, serve.Application] = {}
        for group in self.groups:
            deployment = self._deployment(group, num_gpus, is_ingress=False)
            deployments |= dict.fromkeys(group.references, deployment)
        ingress = serve.deployment(
            IngressReplica,
            name="Ingress",
            num_replicas=max(1, sum(group.engine == "vllm" for group in self.groups)),
            max_ongoing_requests=_HTTP_REQUESTS,
            ray_actor_options={"num_cpus": 0},
            graceful_shutdown_timeout_s=self.options.limits.timeout_s,
            logging_config=QUIET,
        )
        return ingress.bind(self.options, deployments, self.missing)

    def _deployment(
        self, group: ReleaseGroup, num_gpus: float, *, is_ingress: bool
    ) -> serve.Application:
        """Return the deployment of a group. It has the name of the group's first reference, by
        which Serve's YAML sets replicas and resources."""
        options, limits = self.options, self.options.limits
        # vLLM is faster with all threads in one replica, so that one gets the CPUs which the
        # replicas of its releases would have together.
        is_one = group.engine == "vllm"
        cpus = options.cpus * options.replicas * len(group.references) if is_one else options.cpus
        actor: dict[str, Any] = {"num_cpus": cpus}
        if gpus := self.gpus_per_replica(num_gpus):
            actor["num_gpus"] = gpus
        deployment = serve.deployment(
            ReleaseIngress if is_ingress else ReleaseReplica,
            name=group.references[0],
            num_replicas=1 if is_one else options.replicas,
            max_ongoing_requests=_HTTP_REQUESTS if is_ingress else limits.ongoing_requests,
            max_queued_requests=-1 if is_ingress else limits.queued_requests,
            health_check_period_s=2,
            health_check_timeout_s=30,  # a load holds the GIL for seconds
            graceful_shutdown_timeout_s=limits.timeout_s,
            ray_actor_options=actor,
            logging_config=QUIET,
        )
        return deployment.bind(group, options)

    def gpus_per_replica(self, num_gpus: float) -> float:
        """Return the GPUs of a replica: a whole one where there are enough, else an equal part."""
        if self.options.gpus is not None or not num_gpus:
            return self.options.gpus or 0.0
        num_replicas = sum(
            1 if group.engine == "vllm" else self.options.replicas for group in self.groups
        )
        return cluster.share_of_gpu(num_replicas, num_gpus)


def is_one_deployment(
    groups: Sequence[ReleaseGroup], *, has_haproxy: bool, num_replicas: int | None
) -> bool:
    """Return whether the replicas of the only release are their own ingress. Requests of a replica
    that dies are then repeated by HAProxy, and by nothing else."""
    return (
        len(groups) == 1
        and groups[0].engine == "transformers"
        and not groups[0].is_missing
        and (has_haproxy or num_replicas == 1)
    )


def with_whole_paths(options: AppOptions) -> AppOptions:
    """Return the options with absolute paths. Replicas start in other folders, so a relative path
    would mean another place there."""
    paths = {
        name: path for name in _PATHS if (path := getattr(options, name)) and _is_relative(path)
    }
    if paths and not cluster.is_in_folder_of_caller():
        name, path = next(iter(paths.items()))
        raise ConfigError(
            (
                f"{name}: {path}: a relative path has no meaning on a cluster's nodes; write "
                f"an absolute path, such as /srv/medray/{path}"
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
    """Return why a release cannot be served now, or None if its record and checkpoint exist."""
    try:
        registry.resolve(reference).folder()
    except ArtifactError as err:
        return str(err)
    return None
