"""The one ingress: it routes requests to releases, retries where a replica died, and records each
request. It imports no torch."""

import asyncio
import collections
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.util.metrics import Counter, Histogram

from medray.serving import auth, front
from medray.serving.api import make_api
from medray.serving.auth import Refusal, check_address, is_loopback
from medray.serving.cards import ReleaseCard
from medray.serving.process import audit, open_audit_log, prepare
from medray.serving.schemas import RETRY_AFTER_S, AppOptions, Health, ReleaseHealth, ReplicaReport
from medray.serving.service import Conversation, Description, Event, Events
from medray.tasks.base.route import TextRequest, TextResponse

if TYPE_CHECKING:
    from medray.types import Prediction


_REPORT_S = 5.0
_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
_FIRST_TOKEN_S = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
_ATTEMPTS = 2  # attempts: the first, and one more where its replica died
Absence = Literal["loading", "degraded", "idle"]
_EXPECTED_ERRORS = (TimeoutError, BackPressureError, RayActorError, DeploymentUnavailableError)


@serve.ingress()
class Ingress:
    def __init__(
        self, options: AppOptions, heads: dict[str, DeploymentHandle], missing: dict[str, str]
    ) -> None:
        prepare()
        open_audit_log(options.audit_log)
        self.options, self.heads = options, heads
        self.missing = dict(
            missing
        )  # releases that no replica has reported yet, and why they were not there at the start
        self.talking = {reference: head.options(stream=True) for reference, head in heads.items()}
        self.references = options.releases
        self.digests = auth.read(Path(options.tokens_file)) if options.tokens_file else None
        host = _host()
        check_address(host, has_tokens=self.digests is not None or options.open_to_all)
        # A page of another name that is made to point at loopback has no token, so only what needs
        # none must know its names.
        is_checked = bool(options.hosts) or (self.digests is None and is_loopback(host))
        self.hosts = (*options.hosts, host) if is_checked else None
        front.check(options.limits.body_bytes)
        self.requests = Counter(
            "medray_requests",
            "requests answered or refused",
            tag_keys=("model", "release", "version", "status"),
        )
        self.seconds = Histogram(
            "medray_request_seconds",
            "from arrival to answer",
            boundaries=_SECONDS,
            tag_keys=("release", "version"),
        )
        self.labels = Counter(
            "medray_labels", "texts answered so", tag_keys=("release", "version", "label")
        )
        self.confidence = Histogram(
            "medray_confidence",
            "how sure answers were",
            boundaries=BOUNDS,
            tag_keys=("release", "version"),
        )
        self.tokens = Counter(
            "medray_tokens",
            "tokens read and written by releases that talk",
            tag_keys=("release", "version", "kind"),
        )
        self.first = Histogram(
            "medray_first_token_seconds",
            "from arrival to the first piece",
            boundaries=_FIRST_TOKEN_S,
            tag_keys=("release", "version"),
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        options = self.options
        return make_api(
            self,
            options.limits,
            self.digests,
            hosts=self.hosts,
            disclaimer_in_content=options.disclaimer_in_content,
            mask_identifiers=options.mask_identifiers,
        )

    async def answer(self, reference: str, request: TextRequest) -> TextResponse | Refusal:
        timeout_s = self.options.limits.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self._ask(reference, request, timeout_s)
        except _EXPECTED_ERRORS as err:
            return self._refusal(err)

    async def _ask(
        self, reference: str, request: TextRequest, timeout_s: float
    ) -> TextResponse | Refusal:
        """Send a request to a replica, and once more where that died: a prediction changes
        nothing."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                outcome: TextResponse | Refusal = await self.heads[reference].answer.remote(
                    reference, request, timeout_s
                )
                return outcome
            except RayActorError:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("the loop returns or raises")

    async def talk(self, reference: str, conversation: Conversation) -> Events:
        """Pass an answer on piece by piece. It does not start again where its replica dies after
        the first piece, which was sent."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.options.limits.timeout_s
        has_begun = has_ended = False
        for attempt in range(1, _ATTEMPTS + 1):
            pieces = self.talking[reference].talk.remote(reference, conversation, end - loop.time())
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
        try:
            async with asyncio.timeout(_REPORT_S):
                answer: Description | Refusal = await self.heads[reference].describe.remote(
                    reference
                )
                return answer
        except _EXPECTED_ERRORS as err:
            return self._refusal(err)

    async def card(self, reference: str) -> ReleaseCard | Refusal:
        try:
            async with asyncio.timeout(_REPORT_S):
                answer: ReleaseCard | Refusal = await self.heads[reference].card.remote(reference)
                return answer
        except _EXPECTED_ERRORS as err:
            return self._refusal(err)

    def _refusal(self, err: Exception) -> Refusal:
        if isinstance(err, TimeoutError):
            return Refusal(
                504,
                "deadline_exceeded",
                f"the answer was not ready in {self.options.limits.timeout_s:g} s",
            )
        if isinstance(err, BackPressureError):
            return Refusal(
                429, "overloaded", "too many requests are waiting; try again later", RETRY_AFTER_S
            )
        return Refusal(
            503,
            "unavailable",
            "no replica of this release could answer; try again later",
            RETRY_AFTER_S,
        )

    async def health(self) -> Health:
        health = await asyncio.gather(
            *(self._release_health(reference) for reference in self.references)
        )
        statuses = {one.status for one in health}
        worst: Literal["ok", "loading", "degraded"] = (
            "degraded"
            if statuses & {"degraded", "missing"}
            else "loading"
            if "loading" in statuses
            else "ok"
        )
        return Health(status=worst, releases=dict(zip(self.references, health, strict=True)))

    async def _release_health(self, reference: str) -> ReleaseHealth:
        try:
            responses = self.heads[reference].broadcast("report", reference)
            answers = await responses.results_async(timeout_s=_REPORT_S, return_exceptions=True)
        except DeploymentUnavailableError:
            status = await self._absence(reference)
            if status == "idle" and reference in self.missing:
                return ReleaseHealth(status="missing", error=self.missing[reference])
            return ReleaseHealth(status=status)
        except TimeoutError:
            return ReleaseHealth(status="degraded")
        reports = tuple(
            sorted(
                (answer for answer in answers if isinstance(answer, ReplicaReport)),
                key=lambda report: report.replica,
            )
        )
        if reports and not any(report.version for report in reports):
            return ReleaseHealth(status="missing", error=reports[0].error, replicas=reports)
        if reports:
            self.missing.pop(reference, None)
        healthy = len(reports) == len(answers) and all(report.error is None for report in reports)
        return ReleaseHealth(status="ok" if healthy else "degraded", replicas=reports)

    async def _absence(self, reference: str) -> Absence:
        try:
            async with asyncio.timeout(_REPORT_S):
                return absence(await asyncio.to_thread(_deployment, self.heads[reference]))
        except (TimeoutError, RayError):  # Serve's controller is not there either
            return "degraded"

    def record(self, event: Event) -> None:
        version = str(event.version)
        self.requests.inc(
            1,
            {
                "model": event.model,
                "release": event.release,
                "version": version,
                "status": str(event.status),
            },
        )
        if event.status == 200:
            self.seconds.observe(event.seconds, {"release": event.release, "version": version})
        for label in event.labels:
            self.labels.inc(
                1, {"release": event.release, "version": version, "label": label or NOTHING}
            )
        for sure in event.confidences:
            self.confidence.observe(sure, {"release": event.release, "version": version})
        figures = (
            self._talk_figures(event, {"release": event.release, "version": version})
            if event.first_token_s is not None
            else {}
        )
        line = {
            "request_id": event.request_id,
            "release": f"{event.release}@{event.version}" if event.release else None,
            "status": event.status,
            "labels": event.labels,
            "ms": round(1000 * event.seconds, 1),
        }
        audit.info("%s", json.dumps(line | figures, ensure_ascii=False))

    def _talk_figures(self, event: Event, tags: dict[str, str]) -> dict[str, Any]:
        """Record the tokens of an answer that had begun, and return what the log says of it."""
        assert event.first_token_s is not None
        self.tokens.inc(event.prompt_tokens, tags | {"kind": "prompt"})
        self.tokens.inc(event.completion_tokens, tags | {"kind": "completion"})
        self.first.observe(event.first_token_s, tags)
        return {
            "outcome": event.outcome,
            "prompt_tokens": event.prompt_tokens,
            "completion_tokens": event.completion_tokens,
            "first_token_ms": round(1000 * event.first_token_s, 1),
        }


def absence(deployment: Mapping[str, Any] | None) -> Absence:
    """Why no replica of a release answers, by what Serve's controller tells of its deployment."""
    if deployment is None or deployment["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
        return "degraded"
    return "loading" if deployment["target_num_replicas"] else "idle"


def _deployment(head: DeploymentHandle) -> Mapping[str, Any] | None:
    """As Serve's REST API shows it; `serve.status()` leaves out how many replicas are wanted."""
    application = _get_global_client().get_serve_details()["applications"].get(head.app_name, {})
    deployment: Mapping[str, Any] | None = application.get("deployments", {}).get(
        head.deployment_name
    )
    return deployment


def _host() -> str:
    """The address that Serve's proxy listens at, a setting of the cluster."""
    return str(_get_global_client().http_config.host)


BOUNDS = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0]  # of confidence
NOTHING = "none"  # where no label was given


@dataclass(frozen=True)
class Shares:
    labels: Mapping[str, float]
    confidence: Mapping[str, float]  # share of the rows with at most this confidence, by bound


def name_of(labels: Sequence[str]) -> str:
    """An answer's labels as one name."""
    return "|".join(labels) or NOTHING


def shares(predictions: "Sequence[Prediction]") -> Shares:
    """Of calibrated predictions. Those without a confidence, which are texts or mentions, have none
    here either."""
    sure = [row.confidence for row in predictions if row.confidence is not None]
    if not sure:
        return Shares({}, {})
    counts = collections.Counter(name_of(row.labels) for row in predictions)
    return Shares(
        {label: count / len(predictions) for label, count in counts.items()},
        {f"{bound:g}": sum(one <= bound for one in sure) / len(sure) for bound in BOUNDS},
    )
