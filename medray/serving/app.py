"""The Serve application: one ingress, a deployment per release, or per engine that several share. `build` is what Serve's YAML names as `import_path`."""

import logging
from pathlib import Path

from ray import serve
from ray.serve.schema import LoggingConfig

from medray.errors import ArtifactError, ConfigError, ServingError
from medray.registry.registry import Registry
from medray.runtime import cluster
from medray.serving.ingress import Ingress
from medray.serving.replica import HeadReplica
from medray.serving.schemas import AppOptions
from medray.serving.vllm import Group, groups
from medray.storage import files

log = logging.getLogger(__name__)
QUIET = LoggingConfig(enable_access_log=False)  # the audit line says it once, and more
_PATHS = ("storage_path", "tokens_file", "require_signature", "audit_log")


def build(options: AppOptions) -> serve.Application:
    """What `serve run`, `serve deploy` and `medray serve` start: at least one of its releases must be there."""
    options = _with_whole_paths(options)
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
    found = groups(registry, options, missing)
    for group in found:
        log.info("%s: answered by %s%s", ", ".join(group.references), group.engine, ", sharing its base" if group.is_shared else "")
    heads: dict[str, serve.Application] = {}
    for group in found:
        heads |= dict.fromkeys(group.references, _head(group, options))
    ingress = serve.deployment(
        Ingress,
        name="Ingress",
        max_ongoing_requests=1000,  # the bound is in front of the heads, where it is answered with a typed 429
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=options.limits.timeout_s,
        logging_config=QUIET,
    )
    return ingress.bind(options, heads, missing)


def _with_whole_paths(options: AppOptions) -> AppOptions:
    """Replicas start in folders of their own nodes, so a relative path is made whole here, where that has one meaning."""
    paths = {name: path for name in _PATHS if (path := getattr(options, name)) and _is_relative(path)}
    if paths and not cluster.is_in_folder_of_caller():
        name, path = next(iter(paths.items()))
        raise ConfigError(
            f"{name}: {path}: is relative, and a cluster does not know to which folder; write the whole path, such as /srv/medray/{path}"
            + (", or s3://BUCKET/PREFIX" if name == "storage_path" else "")
        )
    return options.model_copy(update={name: str(files.absolute(path)) for name, path in paths.items()})


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
    """A deployment of its first reference's name: by that name Serve's YAML sets replicas and resources."""
    limits = options.limits
    # vLLM answers more with all threads in one replica; it gets what the replicas of its releases would have together.
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
        ray_actor_options={"num_cpus": options.cpus * options.replicas * len(group.references) if is_one else options.cpus},
        logging_config=QUIET,
    )
    return deployment.bind(group, options)
