"""The Serve application: one ingress, a deployment per release, or per engine that several share. `build` is what Serve's YAML names as `import_path`."""

import logging
from pathlib import Path

from ray import serve
from ray.serve.schema import LoggingConfig

from medray.registry import Registry
from medray.serving.groups import Group, groups
from medray.serving.ingress import Ingress
from medray.serving.replica import HeadReplica
from medray.serving.schemas import AppOptions

log = logging.getLogger(__name__)
QUIET = LoggingConfig(enable_access_log=False)  # the audit line says it once, and more


def build(options: AppOptions) -> serve.Application:
    """What `serve run`, `serve deploy` and `medray serve` start. A wrong reference is refused here already."""
    registry = Registry(options.storage_path)
    if options.require_signature:
        for reference in options.releases:
            registry.resolve(reference).check_signature(Path(options.require_signature))
    found = groups(registry, options)
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
    return ingress.bind(options, heads)


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
