"""Moving an alias under live traffic: write it, then wait until every replica reports the version.
Talks HTTP, knows no Ray."""

import time
from collections.abc import Callable
from typing import Any

from medray.client import Client
from medray.errors import ConfigError, PromotionError, ServingError
from medray.registry.registry import Registry
from medray.serving.follow import standing

_LOOK_S = 0.5


def promote(
    registry: Registry,
    reference: str,
    alias: str,
    client: Client | None,
    *,
    timeout_s: float,
    digest: str | None = None,
) -> str:
    """Point `alias` at the version of a `reference`; without a client nobody is waited for. Returns
    what is live now."""
    release = registry.resolve(reference, digest=digest)
    name, version = release.record.name, release.record.version
    # a file that is not what it was published as is found before anybody is asked to load it
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
    """Point an alias at the version it stood on before the current one; asked again, one further
    back."""
    moves = registry.history(name, alias)
    if registry.move_numbers(name, alias):
        registry.newest(
            name,
            alias,
            # where it cannot be read, the last one that can be is what to go back to, and not what
            # to leave
        )
    before = standing(moves)[:-1]
    if not before:
        raise ConfigError(f"{name}@{alias}: there is no earlier version to go back to")
    digest = {move.version: move.record for move in moves}[before[-1]]
    return promote(
        registry, f"{name}@{before[-1]}", alias, client, timeout_s=timeout_s, digest=digest
    )


def _follower(client: Client, name: str, alias: str) -> dict[str, Any]:
    """The health of the deployment that follows this alias, or an error that says why nobody can be
    waited for."""
    reference = f"{name}@{alias}"
    releases = client.health().get("releases")
    if releases is None:
        raise ServingError(f"{client.url}: tells its versions only to who has a token")
    if reference not in releases:
        raise ServingError(f"{client.url}: serves {', '.join(releases)} and not {reference}")
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
    state = "nothing was reported"
    while clock() < end:
        try:
            health = _follower(client, name, alias)
        except ServingError as err:  # a proxy or ingress that starts anew is waited for as well
            state = str(err)
            time.sleep(_LOOK_S)
            continue
        replicas = health["replicas"]
        is_asleep = not replicas and health["status"] in ("idle", "missing")
        if is_asleep or (replicas and all(replica["version"] == version for replica in replicas)):
            return
        failed = [replica for replica in replicas if replica.get("error_version") == version]
        if failed:
            raise PromotionError(
                f"{reference}: version {version} was not taken, the one before still answers: "
                f"{failed[0]['error']}"
            )
        state = (
            ", ".join(
                f"replica {replica['replica']} serves {replica['version']}" for replica in replicas
            )
            or f"no replica reports ({health['status']})"
        )
        time.sleep(_LOOK_S)
    raise PromotionError(
        f"{reference}: version {version} is not everywhere after {timeout_s:g} s: {state}"
    )
