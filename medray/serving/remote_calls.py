"""Calls of an ingress that go to the deployments of releases, and again if a replica died. Imports
no torch."""

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from medray.serving.cards import ReleaseCard
from medray.serving.ingress import REPORT_S, Ingress, release_health
from medray.serving.refusals import Refusal, full_queue, too_late
from medray.serving.replica_setup import prepare
from medray.serving.schemas import RETRY_AFTER_S, AppOptions, Limits, ReleaseHealth
from medray.serving.service import Conversation, Description, Events, Inquiry, InquiryReply
from medray.tasks.base.route import (
    ExplainRequest,
    ExplainResponse,
    TextRequest,
    TextResponse,
)

_ATTEMPTS = 2  # the first, and one more if its replica died
Absence = Literal["loading", "degraded", "idle"]
_EXPECTED_ERRORS = (TimeoutError, BackPressureError, RayActorError, DeploymentUnavailableError)


@serve.ingress()
class IngressReplica:
    """A replica of the ingress of an application with several deployments."""

    def __init__(
        self, options: AppOptions, deployments: dict[str, DeploymentHandle], missing: dict[str, str]
    ) -> None:
        prepare()
        self.ingress = Ingress(options, RemoteCalls(options.limits, deployments, missing))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self.ingress.api()


class RemoteCalls:
    def __init__(
        self, limits: Limits, deployments: dict[str, DeploymentHandle], missing: dict[str, str]
    ) -> None:
        self.limits, self.deployments = limits, deployments
        # Releases that no replica has reported yet, each with the reason why it did not exist.
        self.missing = dict(missing)
        self.streaming = {
            reference: deployment.options(stream=True)
            for reference, deployment in deployments.items()
        }

    async def answer(self, reference: str, request: TextRequest) -> TextResponse | Refusal:
        outcome: TextResponse | Refusal = await self._predict("answer", reference, request)
        return outcome

    async def decide(self, reference: str, inquiry: Inquiry) -> InquiryReply | Refusal:
        outcome: InquiryReply | Refusal = await self._predict("decide", reference, inquiry)
        return outcome

    async def explain(self, reference: str, request: ExplainRequest) -> ExplainResponse | Refusal:
        outcome: ExplainResponse | Refusal = await self._predict("explain", reference, request)
        return outcome

    async def _predict(
        self, method: str, reference: str, request: TextRequest | Inquiry | ExplainRequest
    ) -> Any:
        """Send a request to a replica, and again if that died. Repeating a prediction is safe."""
        timeout_s = self.limits.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                for attempt in range(1, _ATTEMPTS + 1):
                    try:
                        call = getattr(self.deployments[reference], method)
                        return await call.remote(reference, request, timeout_s)
                    except RayActorError:
                        if attempt == _ATTEMPTS:
                            raise
        except _EXPECTED_ERRORS as err:
            return self._refusal(err)
        raise AssertionError("the loop returns or raises")

    async def talk(self, reference: str, conversation: Conversation) -> Events:
        """Pass on the pieces of an answer. It cannot start again once the first piece was sent."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.limits.timeout_s
        has_begun = has_ended = False
        for attempt in range(1, _ATTEMPTS + 1):
            pieces = self.streaming[reference].talk.remote(
                reference, conversation, end - loop.time()
            )
            try:
                while True:
                    async with asyncio.timeout_at(end):
                        piece = await anext(pieces, None)
                    if piece is None:
                        has_ended = True
                        return
                    has_begun = True
                    yield piece
            except _EXPECTED_ERRORS as err:
                if has_begun or attempt == _ATTEMPTS or not isinstance(err, RayActorError):
                    yield self._refusal(err)
                    return
            finally:
                if not has_ended:
                    pieces.cancel()

    async def describe(self, reference: str) -> Description | Refusal:
        outcome: Description | Refusal = await self._look_up("describe", reference)
        return outcome

    async def card(self, reference: str) -> ReleaseCard | Refusal:
        outcome: ReleaseCard | Refusal = await self._look_up("card", reference)
        return outcome

    async def _look_up(self, method: str, reference: str) -> Any:
        try:
            async with asyncio.timeout(REPORT_S):
                return await getattr(self.deployments[reference], method).remote(reference)
        except _EXPECTED_ERRORS as err:
            return self._refusal(err)

    def _refusal(self, err: Exception) -> Refusal:
        if isinstance(err, TimeoutError):
            return too_late(self.limits.timeout_s)
        if isinstance(err, BackPressureError):
            return full_queue()
        return Refusal(
            503,
            "unavailable",
            "no replica of this release can answer; try again later",
            RETRY_AFTER_S,
        )

    async def release_health(self, reference: str) -> ReleaseHealth:
        try:
            health = await release_health(self.deployments[reference], reference)
        except DeploymentUnavailableError:
            status = await self._absence(reference)
            if status == "idle" and reference in self.missing:
                return ReleaseHealth(status="missing", error=self.missing[reference])
            return ReleaseHealth(status=status)
        except TimeoutError:
            return ReleaseHealth(status="degraded")
        if any(report.version for report in health.replicas):
            self.missing.pop(reference, None)
        return health

    async def _absence(self, reference: str) -> Absence:
        try:
            async with asyncio.timeout(REPORT_S):
                return absence(await asyncio.to_thread(_deployment, self.deployments[reference]))
        except (TimeoutError, RayError):  # Serve's controller does not answer either
            return "degraded"


def absence(deployment: Mapping[str, Any] | None) -> Absence:
    """Return why no replica of a release answers, from what Serve's controller reports."""
    if deployment is None or deployment["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
        return "degraded"
    return "loading" if deployment["target_num_replicas"] else "idle"


def _deployment(handle: DeploymentHandle) -> Mapping[str, Any] | None:
    """Return a deployment as Serve's REST API reports it. `serve.status()` lacks the number of
    replicas that should run."""
    application = _get_global_client().get_serve_details()["applications"].get(handle.app_name, {})
    deployment: Mapping[str, Any] | None = application.get("deployments", {}).get(
        handle.deployment_name
    )
    return deployment
