"""The Serve replica of a release, or of several on one engine. It loads, follows, answers and
reports, and holds no arithmetic."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from ray import serve
from ray.util.metrics import Gauge

from medray.errors import DataError, ServingError
from medray.evaluation.calibration import calibrate
from medray.models.device import take_device
from medray.registry.loading import LoadedRelease
from medray.registry.predictions import read_predictions
from medray.registry.registry import Registry
from medray.registry.release import Release
from medray.serving import notes
from medray.serving.cards import ReleaseCard, audit, card
from medray.serving.chat import ChatModel
from medray.serving.explainer import Explainer
from medray.serving.follow import Follower
from medray.serving.notes import TrainingTexts
from medray.serving.opening import open_model
from medray.serving.refusals import Refusal
from medray.serving.replica_refusals import QUESTION_ERRORS, refusal_of, wrong_route
from medray.serving.replica_setup import prepare
from medray.serving.schemas import CHAT_PATH, RETRY_AFTER_S, AppOptions, ReplicaReport
from medray.serving.service import (
    Conversation,
    Description,
    Inquiry,
    InquiryReply,
    Start,
    TextPiece,
)
from medray.serving.shares import shares, tag_of
from medray.serving.streams import LateError, OverloadedError, TooManyTokensError
from medray.serving.text_model import TextModel
from medray.serving.vllm import ReleaseGroup
from medray.serving.vllm_head import VllmModels
from medray.tasks.base.citations import SentencesError
from medray.tasks.base.questions import questions_of
from medray.tasks.base.route import (
    ExplainRequest,
    ExplainResponse,
    InputNote,
    TextRequest,
    TextResponse,
)
from medray.types import Chunk

log = logging.getLogger(__name__)
Place = TypeVar("Place")
Request = TypeVar("Request")
Reply = TypeVar("Reply")
_WAITING = Refusal(
    503, "unavailable", "this release is not loaded yet; /healthz reports why", RETRY_AFTER_S
)


class ReleaseReplica:
    def __init__(self, group: ReleaseGroup, options: AppOptions) -> None:
        prepare()
        resources = ray.get_runtime_context().get_assigned_resources()
        threads = max(1, int(resources.get("CPU", 1)))
        torch.set_num_threads(threads)
        self.options = options
        gpus = resources.get("GPU", 0.0)
        self.device = take_device(gpus)
        self.vllm_models = (
            VllmModels(group, options, threads=threads, gpus=gpus if self.device == "cuda" else 0)
            if group.engine == "vllm"
            else None
        )
        self.replica = serve.get_replica_context().replica_id.unique_id
        # One thread computes. The others encode, wait for their rows and build responses.
        self.compute = ThreadPoolExecutor(
            1, "compute", initializer=torch.set_num_threads, initargs=(threads,)
        )
        self.requests = ThreadPoolExecutor(options.limits.ongoing_requests, "request")
        self.explainer = Explainer(options.limits)
        self.gauge = Gauge(
            "medray_release_version", "version that a replica serves", tag_keys=("model",)
        )
        self.validation_labels = Gauge(
            "medray_validation_label_share",
            "share of validation rows with this predicted label",
            tag_keys=("release", "version", "label"),
        )
        self.validation_confidence = Gauge(
            "medray_validation_confidence_share",
            "share of validation rows with at most this confidence",
            tag_keys=("release", "version", "at_most"),
        )
        self.training_texts: dict[str, TrainingTexts | None] = {}
        self.followers: dict[str, Follower[TextModel | ChatModel]] = {
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

    def open_release(self, reference: str, release: Release) -> TextModel | ChatModel:
        if self.options.require_signature:
            release.check_signature(Path(self.options.require_signature))
        model = (
            self.vllm_models.open(release)
            if self.vllm_models
            else open_model(release, self.options, self.compute, device=self.device)
        )
        self.gauge.set(model.release.version, {"model": reference})
        if isinstance(model, TextModel):
            self._report_validation(model.release)
        return model

    def check_health(self) -> None:
        """Raise if this replica cannot answer any more. Serve calls this, and then starts another
        one."""
        if self.vllm_models and self.vllm_models.is_dead:
            raise ServingError("vLLM's processes have died")

    def _report_validation(self, release: LoadedRelease) -> None:
        validation = shares(
            calibrate(release.task, release.calibration, read_predictions(release.folder))
        )
        tags = {"release": release.name, "version": str(release.version)}
        for label, share in validation.labels.items():
            self.validation_labels.set(share, tags | {"label": tag_of(label)})
        for bound, share in validation.confidence.items():
            self.validation_confidence.set(share, tags | {"at_most": bound})

    def _training_texts(self, reference: str) -> TrainingTexts | None:
        release = self.followers[reference].release
        assert release is not None
        if release.record.content_id not in self.training_texts:
            self.training_texts[release.record.content_id] = TrainingTexts.of(
                audit(release.folder())
            )
        return self.training_texts[release.record.content_id]

    def _model(self, reference: str) -> TextModel | ChatModel | Refusal:
        return self.followers[reference].model or _WAITING

    async def answer(
        self, reference: str, request: TextRequest, timeout_s: float
    ) -> TextResponse | Refusal:
        return await self._in_thread(self._answer, reference, request, timeout_s)

    async def decide(
        self, reference: str, inquiry: Inquiry, timeout_s: float
    ) -> InquiryReply | Refusal:
        return await self._in_thread(self._decide, reference, inquiry, timeout_s)

    async def explain(
        self, reference: str, request: ExplainRequest, timeout_s: float
    ) -> ExplainResponse | Refusal:
        model = self._model(reference)
        if isinstance(model, Refusal):
            return model
        return await self._in_thread(self.explainer.answer, model, request, timeout_s)

    async def _in_thread(
        self,
        method: Callable[[Place, Request, float], Reply | Refusal],
        place: Place,
        request: Request,
        timeout_s: float,
    ) -> Reply | Refusal:
        deadline = time.monotonic() + timeout_s
        return await asyncio.get_running_loop().run_in_executor(
            self.requests, method, place, request, deadline
        )

    def _decide(self, reference: str, inquiry: Inquiry, deadline: float) -> InquiryReply | Refusal:
        model = self._model(reference)
        if isinstance(model, Refusal):
            return model
        if isinstance(model, ChatModel) or not questions_of(model.task):
            path = CHAT_PATH if isinstance(model, ChatModel) else model.path
            return wrong_route(f"{model.release.name} answers at {path}")
        try:
            reply = model.decide(inquiry, limits=self.options.limits, deadline=deadline)
        except QUESTION_ERRORS as err:
            return refusal_of(err)
        if self.options.flag_unlike_training:
            training = self._training_texts(reference)
            note = notes.flag_text(inquiry.text, (*reply.notes, InputNote())[0], training)
            return replace(reply, notes=(note,))
        return reply

    def _answer(
        self, reference: str, request: TextRequest, deadline: float
    ) -> TextResponse | Refusal:
        model = self._model(reference)
        if isinstance(model, Refusal):
            return model
        if isinstance(model, ChatModel):
            return wrong_route(f"{model.release.name} answers at {CHAT_PATH}")
        if not model.takes(request):
            return wrong_route(f"{model.release.name} answers at {model.path}")
        try:
            response = model.answer(request, limits=self.options.limits, deadline=deadline)
            return (
                notes.flag(request, response, self._training_texts(reference))
                if self.options.flag_unlike_training
                else response
            )
        except (DataError, SentencesError, TooManyTokensError, OverloadedError, LateError) as err:
            return refusal_of(err)

    async def talk(
        self, reference: str, conversation: Conversation, timeout_s: float
    ) -> AsyncGenerator[Start | TextPiece | Refusal, None]:
        """Generate an answer piece by piece. If the caller closes the generator, its row is
        released at the next step."""
        loop, start = asyncio.get_running_loop(), time.monotonic()
        deadline = start + timeout_s
        results: asyncio.Queue[Chunk | Exception] = asyncio.Queue()
        first: list[float] = []

        def deliver(result: Chunk | Exception) -> None:
            if not first:
                first.append(time.monotonic() - start)
            loop.call_soon_threadsafe(results.put_nowait, result)

        model = self._model(reference)
        task = self.requests.submit(self._start, model, conversation, deadline, deliver)
        try:
            outcome = await asyncio.shield(asyncio.wrap_future(task))
        except asyncio.CancelledError:
            if not task.cancel():  # it runs already, so stop what it starts
                task.add_done_callback(lambda future: self._cancel(model, future.result()))
            raise
        if isinstance(outcome, Refusal):
            yield outcome
            return
        assert isinstance(model, ChatModel)
        builder, has_begun = model.builder(conversation), False
        try:
            while True:
                chunks = await _gather(results, whole=conversation.whole)
                if isinstance(chunks, Exception):
                    yield refusal_of(chunks)
                    return
                if not has_begun:
                    has_begun = True
                    yield replace(outcome[0], first_token_s=first[0])
                piece = builder.add(chunks)
                if not piece.finish:
                    yield piece
                    continue
                if conversation.citations:
                    yield await self._cite(model, conversation, builder.text, piece, deadline)
                else:
                    yield piece
                return
        finally:
            self._cancel(model, outcome)

    def _start(
        self,
        model: TextModel | ChatModel | Refusal,
        conversation: Conversation,
        deadline: float,
        deliver: Callable[[Chunk | Exception], None],
    ) -> tuple[Start, Any] | Refusal:
        if isinstance(model, Refusal):
            return model
        if not isinstance(model, ChatModel):
            return wrong_route(f"{model.release.name} does not talk; it answers at {model.path}")
        try:
            return model.begin(conversation, self.options.limits, deadline, deliver)
        except (SentencesError, ServingError) as err:
            return refusal_of(err)

    def _cancel(
        self, model: TextModel | ChatModel | Refusal, outcome: tuple[Start, Any] | Refusal
    ) -> None:
        if isinstance(model, ChatModel) and not isinstance(outcome, Refusal):
            model.streams.cancel(outcome[1])

    async def _cite(
        self,
        model: ChatModel,
        conversation: Conversation,
        text: str,
        piece: TextPiece,
        deadline: float,
    ) -> TextPiece | Refusal:
        """Return the last piece with the citations of the whole answer."""
        try:
            citations = await asyncio.get_running_loop().run_in_executor(
                self.requests, model.cite, conversation, text, deadline
            )
        except Exception as err:
            return refusal_of(err)
        return replace(piece, citations=citations)

    async def describe(self, reference: str) -> Description | Refusal:
        model = self._model(reference)
        return model if isinstance(model, Refusal) else model.describe()

    async def card(self, reference: str) -> ReleaseCard | Refusal:
        release = self.followers[reference].release
        return (
            await asyncio.get_running_loop().run_in_executor(
                self.requests, partial(card, release, explanations=self.options.explanations)
            )
            if release
            else _WAITING
        )

    async def report(self, reference: str) -> ReplicaReport:
        follower = self.followers[reference]
        model = follower.model
        if model is None:
            name = reference.partition("@")[0]
            return ReplicaReport(
                replica=self.replica, release=name, version=0, precision="", error=follower.error
            )
        return ReplicaReport(
            replica=self.replica,
            release=model.release.name,
            version=model.release.version,
            precision=model.release.precision,
            generating=model.streams.num_running + model.streams.num_waiting,
            error=follower.error,
            error_version=follower.error_version,
        )


async def _gather(
    results: "asyncio.Queue[Chunk | Exception]", *, whole: bool
) -> list[Chunk] | Exception:
    """Return the chunks since the last call, or with `whole` all of them."""
    chunks: list[Chunk] = []
    while True:
        result = await results.get()
        if isinstance(result, Exception):
            return result
        chunks.append(result)
        if result.finish or (results.empty() and not whole):
            return chunks
