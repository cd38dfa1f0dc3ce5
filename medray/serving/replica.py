"""A Serve replica of a release, or of several on one engine: a thin shell that loads, follows, answers, talks and reports. No arithmetic here."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray import serve
from ray.util.metrics import Gauge

from medray.errors import DataError, ServingError
from medray.registry.loading import LoadedRelease
from medray.registry.predictions import read_predictions
from medray.registry.registry import Registry
from medray.registry.release import Release
from medray.serving import notes
from medray.serving.auth import Refused
from medray.serving.cards import ReleaseCard, audit, card
from medray.serving.chat import Chat, Telling, TooLongError
from medray.serving.follow import Follower
from medray.serving.head import Head, TooManyTokensError
from medray.serving.ingress import shares
from medray.serving.notes import Known
from medray.serving.opening import open_head
from medray.serving.process import prepare
from medray.serving.schemas import CHAT_PATH, RETRY_AFTER_S, AppOptions, ReplicaReport
from medray.serving.service import Asked, Begun, Described, Said
from medray.serving.streams import LateError, OverloadedError
from medray.serving.vllm import Group
from medray.serving.vllm_head import Shared
from medray.tasks.base.route import TextRequest, TextResponse
from medray.types import Chunk

log = logging.getLogger(__name__)
_WAITING = Refused(503, "unavailable", "this release is not there yet; /healthz says why", RETRY_AFTER_S)


class HeadReplica:
    def __init__(self, group: Group, options: AppOptions) -> None:
        prepare()
        given = ray.get_runtime_context().get_assigned_resources()
        threads = max(1, int(given.get("CPU", 1)))
        torch.set_num_threads(threads)
        self.options = options
        self.device = "cuda" if given.get("GPU") and torch.cuda.is_available() else "cpu"
        gpus = math.ceil(given.get("GPU", 0)) if self.device == "cuda" else 0
        self.shared = Shared(group, options, threads=threads, gpus=gpus) if group.engine == "vllm" else None
        self.replica = serve.get_replica_context().replica_id.unique_id
        # One thread computes; the others encode, wait for their rows and put answers together.
        self.compute = ThreadPoolExecutor(1, "compute", initializer=torch.set_num_threads, initargs=(threads,))
        self.requests = ThreadPoolExecutor(options.limits.ongoing_requests, "request")
        self.gauge = Gauge("medray_release_version", "version that a replica serves", tag_keys=("model",))
        self.validation_labels = Gauge(
            "medray_validation_label_share", "share of validation rows answered so", tag_keys=("release", "version", "label")
        )
        self.validation_confidence = Gauge(
            "medray_validation_confidence_share", "share of validation rows this sure at most", tag_keys=("release", "version", "at_most")
        )
        self.known: dict[str, Known | None] = {}
        self.followers: dict[str, Follower[Head | Chat]] = {
            reference: Follower(
                Registry(options.storage_path),
                reference,
                partial(self.open_release, reference),
                every_s=options.follow_s,
                retry_s=options.retry_s,
                may_wait=group.is_missing,
            )
            for reference in group.references
        }
        for follower in self.followers.values():
            follower.start()

    def open_release(self, reference: str, release: Release) -> Head | Chat:
        if self.options.require_signature:
            release.check_signature(Path(self.options.require_signature))
        head = self.shared.open(release) if self.shared else open_head(release, self.options, self.compute, device=self.device)
        self.gauge.set(head.loaded.version, {"model": reference})
        if isinstance(head, Head):
            self._tell_validation(head.loaded)
        return head

    def check_health(self) -> None:
        """Serve asks, and starts another replica where this raises."""
        if self.shared and self.shared.is_dead:
            raise ServingError("vLLM's processes have died")

    def _tell_validation(self, loaded: LoadedRelease) -> None:
        said = shares(loaded.calibrate(read_predictions(loaded.folder)))
        tags = {"release": loaded.name, "version": str(loaded.version)}
        for label, share in said.labels.items():
            self.validation_labels.set(share, tags | {"label": label})
        for bound, share in said.confidence.items():
            self.validation_confidence.set(share, tags | {"at_most": bound})

    def _known(self, reference: str) -> Known | None:
        release = self.followers[reference].release
        assert release is not None
        if release.record.content_id not in self.known:
            self.known[release.record.content_id] = Known.of(audit(release.folder()))
        return self.known[release.record.content_id]

    def _model(self, reference: str) -> Head | Chat | Refused:
        return self.followers[reference].model or _WAITING

    async def answer(self, reference: str, request: TextRequest, timeout_s: float) -> TextResponse | Refused:
        deadline = time.monotonic() + timeout_s
        return await asyncio.get_running_loop().run_in_executor(self.requests, self._answer, reference, request, deadline)

    def _answer(self, reference: str, request: TextRequest, deadline: float) -> TextResponse | Refused:
        head = self._model(reference)
        if isinstance(head, Refused):
            return head
        if isinstance(head, Chat):
            return Refused(400, "wrong_route", f"{head.loaded.name} is asked at {CHAT_PATH}", param="model")
        if not isinstance(request, tuple(route.request for route in head.task.routes)):
            return Refused(400, "wrong_route", f"{head.loaded.name} is asked at {head.path}", param="model")
        try:
            said = head.answer(request, max_tokens=self.options.limits.tokens, deadline=deadline)
            return notes.flagged(request, said, self._known(reference)) if self.options.flag_unlike_training else said
        except DataError:  # the only one that a text can cause; its message counts rows of a batch, which the sender cannot see
            return Refused(422, "invalid_request", "a text holds no token that the model could read")
        except TooManyTokensError as err:
            return Refused(413, "too_many_tokens", str(err))
        except OverloadedError:
            return Refused(429, "overloaded", "too many texts are waiting; try again later", RETRY_AFTER_S)
        except LateError:
            return Refused(504, "deadline_exceeded", "the answer was not ready in time")

    async def talk(self, reference: str, asked: Asked, timeout_s: float) -> AsyncGenerator[Begun | Said | Refused, None]:
        """Closed by who listens, the row is free at the next step."""
        loop, start = asyncio.get_running_loop(), time.monotonic()
        told: asyncio.Queue[Chunk | Exception] = asyncio.Queue()
        first: list[float] = []

        def deliver(found: Chunk | Exception) -> None:
            if not first:
                first.append(time.monotonic() - start)
            loop.call_soon_threadsafe(told.put_nowait, found)

        chat = self._model(reference)
        started = self.requests.submit(self._start, chat, asked, start + timeout_s, deliver)
        try:
            found = await asyncio.shield(asyncio.wrap_future(started))
        except asyncio.CancelledError:
            if not started.cancel():  # it runs already: what it starts ends with it
                started.add_done_callback(lambda done: self._cancel(chat, done.result()))
            raise
        if isinstance(found, Refused):
            yield found
            return
        assert isinstance(chat, Chat)
        telling, has_begun = Telling(chat.task), False
        try:
            while True:
                chunks = await _gathered(told, whole=asked.whole)
                if isinstance(chunks, Exception):
                    yield _refused(chunks)
                    return
                if not has_begun:
                    has_begun = True
                    yield replace(found[0], first_token_s=first[0])
                said = telling.say(chunks)
                yield said
                if said.finish:
                    return
        finally:
            self._cancel(chat, found)

    def _start(
        self, chat: Head | Chat | Refused, asked: Asked, deadline: float, deliver: Callable[[Chunk | Exception], None]
    ) -> tuple[Begun, Any] | Refused:
        if isinstance(chat, Refused):
            return chat
        if not isinstance(chat, Chat):
            return Refused(400, "wrong_route", f"{chat.loaded.name} does not talk: it is asked at {chat.path}", param="model")
        try:
            return chat.begin(asked, self.options.limits, deadline, deliver)
        except ServingError as err:
            return _refused(err)

    def _cancel(self, chat: Head | Chat | Refused, found: tuple[Begun, Any] | Refused) -> None:
        if isinstance(chat, Chat) and not isinstance(found, Refused):
            chat.streams.cancel(found[1])

    async def describe(self, reference: str) -> Described | Refused:
        model = self._model(reference)
        return model if isinstance(model, Refused) else model.describe()

    async def card(self, reference: str) -> ReleaseCard | Refused:
        release = self.followers[reference].release
        return await asyncio.get_running_loop().run_in_executor(self.requests, card, release) if release else _WAITING

    async def report(self, reference: str) -> ReplicaReport:
        following = self.followers[reference]
        head = following.model
        if head is None:
            name = reference.partition("@")[0]
            return ReplicaReport(replica=self.replica, release=name, version=0, precision="", error=following.error)
        return ReplicaReport(
            replica=self.replica,
            release=head.loaded.name,
            version=head.loaded.version,
            precision=head.loaded.precision,
            generating=head.streams.num_running + head.streams.num_waiting,
            error=following.error,
            error_version=following.error_version,
        )


async def _gathered(told: "asyncio.Queue[Chunk | Exception]", *, whole: bool) -> list[Chunk] | Exception:
    """What has come since the last time, or the whole."""
    chunks: list[Chunk] = []
    while True:
        found = await told.get()
        if isinstance(found, Exception):
            return found
        chunks.append(found)
        if found.finish or (told.empty() and not whole):
            return chunks


def _refused(err: Exception) -> Refused:
    if isinstance(err, TooLongError):
        return Refused(400, "invalid_request", str(err), code="context_length_exceeded")
    if isinstance(err, OverloadedError):
        return Refused(429, "overloaded", "too many texts are waiting; try again later", RETRY_AFTER_S)
    if isinstance(err, LateError):
        return Refused(504, "deadline_exceeded", "the answer was not ready in time")
    log.error("%s while a text was generated", type(err).__name__)
    return Refused(500, "internal_error", "the answer broke off; the server's log has the cause")
