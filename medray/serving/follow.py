"""A replica follows an alias: it looks where the alias points, loads that version, and switches to
it once its probe passes.

Imports neither Ray nor HTTP nor torch; the caller passes the function that loads.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from medray.errors import ArtifactError
from medray.records import Move
from medray.registry.registry import Registry, is_version
from medray.registry.release import Release

log = logging.getLogger(__name__)
Model = TypeVar("Model")


def standing(moves: Sequence[Move]) -> list[int]:
    """Return the versions an alias can go back to, the current one last. A move to an earlier
    version withdraws those after it."""
    versions: list[int] = []
    for move in moves:
        if move.version in versions:
            del versions[versions.index(move.version) + 1 :]
        else:
            versions.append(move.version)
    return versions


class Follower(Generic[Model]):
    """Keeps the model of an alias current. With `may_wait`, the release need not exist yet; until
    then `release` and `model` are None."""

    def __init__(
        self,
        registry: Registry,
        reference: str,
        open_release: Callable[[Release], Model],
        *,
        every_s: float,
        retry_s: float,
        may_wait: bool = False,
    ):
        self.registry, self.reference, self.open_release = registry, reference, open_release
        self.every_s, self.retry_s = every_s, retry_s
        self.error: str | None = None
        self.error_version: int | None = None
        self._failed_at = 0.0
        self._stop = threading.Event()
        self.release: Release | None = None
        self.model: Model | None = None
        try:
            self.release, self.model = self._first()
        except Exception as err:
            if not may_wait:
                raise
            self._record_failure(None, err)

    def start(self) -> None:
        threading.Thread(target=self._run, name=f"follow {self.reference}", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def step(self) -> None:
        """Look once, and switch if the alias moved. On failure, keep the old model and set
        `error`."""
        try:
            target = self.registry.resolve(self.reference)
        # A store may raise anything, and this thread must not end.
        except Exception as err:
            self._record_failure(None, err)
            return
        if self.release and target.record == self.release.record:
            self.error = self.error_version = None
            return
        if (
            target.record.version == self.error_version
            and time.monotonic() < self._failed_at + self.retry_s
        ):
            return
        log.info("%s: loading %s", self.reference, target.reference)
        try:
            model = self.open_release(target)
        # A broken release may raise anything, and the model that works must stay.
        except Exception as err:
            self._record_failure(target.record.version, err)
            return
        before, self.release, self.model = self.release, target, model
        self.error = self.error_version = None
        log.info(
            "%s: switched to %s from %s",
            self.reference,
            target.reference,
            before.reference if before else "no release",
        )

    def _first(self) -> tuple[Release, Model]:
        """Return the release and its model. If the current version is broken, return the newest
        earlier one that was not withdrawn."""
        target = self.registry.resolve(self.reference)
        try:
            return target, self.open_release(target)
        except Exception as err:
            for version, digest in self._earlier(target).items():
                reference = f"{target.record.name}@{version}"
                try:
                    earlier = self.registry.resolve(reference, digest=digest)
                    model = self.open_release(earlier)
                except Exception as again:
                    log.warning(
                        "%s: %s cannot be loaded either: %s", self.reference, reference, again
                    )
                    continue
                self._record_failure(target.record.version, err)
                return earlier, model
            raise ArtifactError(
                f"{self.reference}: {target.reference} cannot be loaded: {err}"
            ) from err

    def _earlier(self, target: Release) -> dict[int, str | None]:
        """Return earlier versions of the alias, latest first, with the digests of their records."""
        name, _, which = self.reference.partition("@")
        if not which or is_version(which):
            return {}
        moves = self.registry.history(name, which)
        digests = {move.version: move.record for move in moves}
        return {
            version: digests[version]
            for version in reversed(standing(moves))
            if version != target.record.version
        }

    def _record_failure(self, version: int | None, err: Exception) -> None:
        before, self.error, self.error_version, self._failed_at = (
            self.error,
            f"{type(err).__name__}: {err}",
            version,
            time.monotonic(),
        )
        if self.error != before:  # log a lasting error once
            log.warning("%s: does not switch: %s", self.reference, self.error)

    def _run(self) -> None:
        while not self._stop.wait(self.every_s):
            self.step()
