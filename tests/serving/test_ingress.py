"""The ingress gets pieces from replicas: it repeats a call that sent nothing, and stops with the
client."""

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from medray.serving import ingress as ingress_module
from medray.serving.ingress import Ingress
from medray.serving.refusals import Refusal
from medray.serving.schemas import AppOptions, ReplicaReport
from medray.serving.service import Conversation, Start, TextPiece
from medray.types import Message, Sampling

CONVERSATION = Conversation((Message("user", "a"),), Sampling(), 5, whole=False)
START, LAST = (
    Start("adviser", 1, 3, "Not a doctor."),
    TextPiece("b", 1, finish="stop", outcome="answered"),
)
FULL = BackPressureError.__new__(BackPressureError)
AWAY = DeploymentUnavailableError.__new__(DeploymentUnavailableError)


class Pieces:
    """What a replica answers to one call: values, an error, or nothing for ever."""

    def __init__(self, *items: Any) -> None:
        self.items = list(items)
        self.num_cancelled = 0

    def __aiter__(self) -> "Pieces":
        return self

    async def __anext__(self) -> Any:
        if not self.items:
            raise StopAsyncIteration
        item = self.items.pop(0)
        if item is None:
            await asyncio.sleep(60)
        if isinstance(item, Exception):
            raise item
        return item

    def cancel(self) -> None:
        self.num_cancelled += 1


def ingress(calls: Sequence[Pieces]) -> Any:
    """One without Serve around it."""
    left = iter(calls)
    service = object.__new__(Ingress)
    service.options = AppOptions.model_validate(
        {"releases": ["adviser@1"], "limits": {"timeout_s": 0.2}}
    )
    remote: Callable[..., Pieces] = lambda reference, request, timeout_s: next(left)  # noqa: E731
    service.streaming = {"adviser@1": SimpleNamespace(talk=SimpleNamespace(remote=remote))}
    return service


def talk(*calls: Pieces) -> list[Any]:
    async def listen() -> list[Any]:
        return [piece async for piece in ingress(calls).talk("adviser@1", CONVERSATION)]

    return asyncio.run(listen())


def test_pieces_are_passed_on_and_a_finished_call_is_not_cancelled() -> None:
    call = Pieces(START, LAST)
    assert talk(call) == [START, LAST]
    assert call.num_cancelled == 0


def test_a_call_is_repeated_only_if_its_replica_dies_before_the_first_piece() -> None:
    assert talk(Pieces(RayActorError()), Pieces(START, LAST)) == [START, LAST]
    start, refusal = talk(Pieces(START, RayActorError()), Pieces(START, LAST))
    assert start == START
    assert (refusal.status, refusal.type) == (503, "unavailable")
    (twice,) = talk(Pieces(RayActorError()), Pieces(RayActorError()), Pieces(START, LAST))
    assert twice.status == 503


@pytest.mark.parametrize(("err", "status"), [(FULL, 429), (AWAY, 503), (None, 504)])
def test_a_full_queue_no_replica_and_a_late_one_are_refusals(
    err: Exception | None, status: int
) -> None:
    call = Pieces(err)
    (refusal,) = talk(call, Pieces(START, LAST))
    assert isinstance(refusal, Refusal)
    assert refusal.status == status
    assert call.num_cancelled == 1


def test_an_answer_that_outlasts_the_deadline_ends_with_a_refusal_and_is_cancelled() -> None:
    call = Pieces(START, TextPiece("b", 1), None, LAST)
    *pieces, refusal = talk(call)
    assert pieces == [START, TextPiece("b", 1)]
    assert refusal.status == 504
    assert call.num_cancelled == 1


def test_a_client_that_disconnects_cancels_the_call() -> None:
    call = Pieces(START, TextPiece("b", 1), LAST)

    async def leave() -> None:
        pieces = ingress([call]).talk("adviser@1", CONVERSATION)
        assert await anext(pieces) == START
        await pieces.aclose()

    asyncio.run(leave())
    assert call.num_cancelled == 1


def test_a_request_that_is_cancelled_while_it_waits_cancels_the_call() -> None:
    call = Pieces(None)

    async def give_up() -> None:
        waiting = asyncio.ensure_future(anext(ingress([call]).talk("adviser@1", CONVERSATION)))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(give_up())
    assert call.num_cancelled == 1


UP, WAKING, ASLEEP = (
    {"status": status, "target_num_replicas": count}
    for status, count in (("HEALTHY", 2), ("UPSCALING", 1), ("HEALTHY", 0))
)


@pytest.mark.parametrize(
    ("deployment", "status", "whole"),
    [
        ({"status": "UPDATING", "target_num_replicas": 1}, "loading", "loading"),
        (WAKING, "loading", "loading"),
        (UP, "loading", "loading"),  # a replica that died is started anew
        (ASLEEP, "idle", "ok"),
        ({"status": "DOWNSCALING", "target_num_replicas": 0}, "idle", "ok"),
        ({"status": "DEPLOY_FAILED", "target_num_replicas": 1}, "degraded", "degraded"),
        ({"status": "UNHEALTHY", "target_num_replicas": 1}, "degraded", "degraded"),
        (None, "degraded", "degraded"),
    ],
)
def test_a_release_without_replicas_is_loading_asleep_or_broken(
    monkeypatch: pytest.MonkeyPatch, deployment: dict[str, Any] | None, status: str, whole: str
) -> None:
    def broadcast(method: str, reference: str) -> Any:
        raise AWAY

    service = ingress([])
    service.references, service.missing = ("adviser@1",), {}
    service.deployments = {
        "adviser@1": SimpleNamespace(
            broadcast=broadcast, app_name="medray", deployment_name="adviser@1"
        )
    }
    deployments = {} if deployment is None else {"adviser@1": deployment}
    details = {"applications": {"medray": {"deployments": deployments}}}
    monkeypatch.setattr(
        ingress_module,
        "_get_global_client",
        lambda: SimpleNamespace(get_serve_details=lambda: details),
    )
    health = asyncio.run(service.health())
    assert health.releases["adviser@1"].status == status
    assert health.status == whole
    service.missing = {"adviser@1": "has no release 'adviser'"}
    health = asyncio.run(service.health())
    if status == "idle":  # no replica can say that it waits
        assert (health.status, health.releases["adviser@1"].status) == ("degraded", "missing")
        assert health.releases["adviser@1"].error == "has no release 'adviser'"
    else:
        assert health.releases["adviser@1"].status == status


def test_a_release_that_replicas_wait_for_is_missing_until_one_has_it() -> None:
    waiting = ReplicaReport(
        replica="a", release="adviser", version=0, precision="", error="has no release 'adviser'"
    )
    there = ReplicaReport(replica="a", release="adviser", version=1, precision="fp32")
    reports = iter([waiting, there])

    async def results(**options: Any) -> list[Any]:
        return [next(reports)]

    service = ingress([])
    service.references, service.missing = ("adviser@1",), {"adviser@1": "it was not there"}
    service.deployments = {
        "adviser@1": SimpleNamespace(
            broadcast=lambda method, reference: SimpleNamespace(results_async=results)
        )
    }
    health = asyncio.run(service.health())
    assert (health.status, health.releases["adviser@1"].status) == ("degraded", "missing")
    assert health.releases["adviser@1"].error == "has no release 'adviser'"
    health = asyncio.run(service.health())
    assert (health.status, health.releases["adviser@1"].status, service.missing) == ("ok", "ok", {})
