"""A replica follows its release: it looks where the alias points, loads, and switches only to what
answered its probe.

Knows neither Ray nor HTTP nor torch: what is loaded is the caller's matter.
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
    """The versions an alias stands on, current one last: going back to an earlier one withdraws
    those after it."""
    versions: list[int] = []
    for move in moves:
        if move.version in versions:
            del versions[versions.index(move.version) + 1 :]
        else:
            versions.append(move.version)
    return versions


class Follower(Generic[Model]):
    """`release` and `model` are None while it waits for a release that is not there yet, which
    `may_wait` allows."""

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
            self._failed(None, err)

    def start(self) -> None:
        threading.Thread(target=self._run, name=f"follow {self.reference}", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def step(self) -> None:
        """Look once, and switch where the alias says so. On failure the old model stays and `error`
        says why."""
        try:
            wanted = self.registry.resolve(self.reference)
        # a store may fail in ways of its own, and a thread that ends here would never look again
        except Exception as err:
            self._failed(None, err)
            return
        if self.release and wanted.record == self.release.record:
            self.error = self.error_version = None
            return
        if (
            wanted.record.version == self.error_version
            and time.monotonic() < self._failed_at + self.retry_s
        ):
            return
        log.info("%s: loading %s", self.reference, wanted.reference)
        try:
            model = self.open_release(wanted)
        # a broken release may fail in any way; none of them may take down a model that works
        except Exception as err:
            self._failed(wanted.record.version, err)
            return
        before, self.release, self.model = self.release, wanted, model
        self.error = self.error_version = None
        log.info(
            "%s: %s answers instead of %s",
            self.reference,
            wanted.reference,
            before.reference if before else "nothing",
        )

    def _first(self) -> tuple[Release, Model]:
        """A new replica beside a broken release takes what the alias stood on before, never what
        was withdrawn."""
        wanted = self.registry.resolve(self.reference)
        try:
            return wanted, self.open_release(wanted)
        except Exception as err:
            for version, digest in self._earlier(wanted).items():
                reference = f"{wanted.record.name}@{version}"
                try:
                    earlier = self.registry.resolve(reference, digest=digest)
                    model = self.open_release(earlier)
                except Exception as again:
                    log.warning(
                        "%s: %s cannot be loaded either: %s", self.reference, reference, again
                    )
                    continue
                self._failed(wanted.record.version, err)
                return earlier, model
            raise ArtifactError(
                f"{self.reference}: {wanted.reference} cannot be loaded: {err}"
            ) from err

    def _earlier(self, wanted: Release) -> dict[int, str | None]:
        """Versions that the alias stood on, latest first, each with its record's digest."""
        name, _, which = self.reference.partition("@")
        if not which or is_version(which):
            return {}
        moves = self.registry.history(name, which)
        digests = {move.version: move.record for move in moves}
        return {
            version: digests[version]
            for version in reversed(standing(moves))
            if version != wanted.record.version
        }

    def _failed(self, version: int | None, err: Exception) -> None:
        before, self.error, self.error_version, self._failed_at = (
            self.error,
            f"{type(err).__name__}: {err}",
            version,
            time.monotonic(),
        )
        if self.error != before:  # what lasts is logged once
            log.warning("%s: stays as it is: %s", self.reference, self.error)

    def _run(self) -> None:
        while not self._stop.wait(self.every_s):
            self.step()
