"""Move an alias under live traffic: write it, then wait until every replica reports the version.
Speaks HTTP, imports no Ray."""

import time
from collections.abc import Callable
from typing import Any

from medray.client import Client
from medray.errors import ConfigError, PromotionError, ServingError
from medray.registry.registry import Registry
from medray.serving.follow import standing

_POLL_S = 0.5


def promote(
    registry: Registry,
    reference: str,
    alias: str,
    client: Client | None,
    *,
    timeout_s: float,
    digest: str | None = None,
) -> str:
    """Point `alias` at the version of a `reference`, and return the release that is live now. With
    a client, wait until its service has switched."""
    release = registry.resolve(reference, digest=digest)
    name, version = release.record.name, release.record.version
    # A file that changed since it was published must be noticed before a replica loads it.
    release.verify()
    if client is not None:
        _follower(client, name, alias)
    registry.point(name, alias, version, digest=release.digest)
    if client is not None:
        _wait(client, f"{name}@{alias}", version, timeout_s)
    return release.reference


def rollback(
    registry: Registry, name: str, alias: str, client: Client | None, *, timeout_s: float
) -> str:
    """Point an alias at its version before the current one. Each further call goes back one more
    version."""
    moves = registry.history(name, alias)
    if registry.move_numbers(name, alias):
        # Raise if the newest move cannot be read. `history` leaves it out, so the rollback would go
        # back one version too far.
        registry.newest(name, alias)
    before = standing(moves)[:-1]
    if not before:
        raise ConfigError(f"{name}@{alias}: there is no earlier version to go back to")
    digest = {move.version: move.record for move in moves}[before[-1]]
    return promote(
        registry, f"{name}@{before[-1]}", alias, client, timeout_s=timeout_s, digest=digest
    )


def _follower(client: Client, name: str, alias: str) -> dict[str, Any]:
    """Return the health of the deployment that follows this alias, or raise why it cannot be
    followed."""
    reference = f"{name}@{alias}"
    releases = client.health().get("releases")
    if releases is None:
        raise ServingError(
            f"{client.url}: it reports versions only to clients with a token; give --token-file"
        )
    if reference not in releases:
        raise ServingError(
            f"{client.url}: it does not serve {reference}; it serves {', '.join(releases)}"
        )
    health: dict[str, Any] = releases[reference]
    return health


def _wait(
    client: Client,
    reference: str,
    version: int,
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    name, _, alias = reference.partition("@")
    end = clock() + timeout_s
    state = "there was no report"
    while clock() < end:
        try:
            health = _follower(client, name, alias)
        except ServingError as err:  # a proxy or an ingress may be restarting
            state = str(err)
            time.sleep(_POLL_S)
            continue
        replicas = health["replicas"]
        is_asleep = not replicas and health["status"] in ("idle", "missing")
        if is_asleep or (replicas and all(replica["version"] == version for replica in replicas)):
            return
        failures = [replica for replica in replicas if replica.get("error_version") == version]
        if failures:
            raise PromotionError(
                f"{reference}: version {version} failed to load; the previous one still answers: "
                f"{failures[0]['error']}"
            )
        state = (
            ", ".join(
                f"replica {replica['replica']} serves {replica['version']}" for replica in replicas
            )
            or f"no replica reports ({health['status']})"
        )
        time.sleep(_POLL_S)
    raise PromotionError(
        f"{reference}: not every replica serves version {version} after {timeout_s:g} s: {state}"
    )
