"""The calls of an ingress, to other deployments or into its own process: what is late or full is a
refusal, and a call stops with its client. Only a remote call is repeated."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from medray.serving import remote_calls
from medray.serving.ingress import Ingress, LocalCalls
from medray.serving.refusals import Refusal
from medray.serving.remote_calls import RemoteCalls
from medray.serving.schemas import Limits, ReplicaReport
from medray.serving.service import Calls, Conversation, Inquiry, Start, TextPiece
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


LIMITS = Limits(timeout_s=0.2, ongoing_requests=2, queued_requests=1)
Build = Callable[[Sequence[Pieces]], Calls]


def remote(calls: Sequence[Pieces]) -> RemoteCalls:
    """Calls without Serve around them."""
    left = iter(calls)
    talk: Callable[..., Pieces] = lambda reference, request, timeout_s: next(left)  # noqa: E731
    handle: Any = SimpleNamespace(
        options=lambda *, stream: SimpleNamespace(talk=SimpleNamespace(remote=talk))
    )
    return RemoteCalls(LIMITS, {"adviser@1": handle}, {})


def local(calls: Sequence[Pieces], **replica: Any) -> LocalCalls:
    left = iter(calls)

    async def talk(reference: str, request: Conversation, timeout_s: float) -> AsyncIterator[Any]:
        call = next(left)
        try:
            async for piece in call:
                yield piece
        except (GeneratorExit, asyncio.CancelledError):
            call.cancel()
            raise

    target: Any = SimpleNamespace(talk=talk, **replica)
    return LocalCalls(LIMITS, target, cast(Any, None))


@pytest.fixture(params=[remote, local])
def build(request: pytest.FixtureRequest) -> Build:
    return cast(Build, request.param)


def talk(build: Build, *calls: Pieces) -> list[Any]:
    async def listen() -> list[Any]:
        return [piece async for piece in build(calls).talk("adviser@1", CONVERSATION)]

    return asyncio.run(listen())


def test_pieces_are_passed_on_and_a_finished_call_is_not_cancelled(build: Build) -> None:
    call = Pieces(START, LAST)
    assert talk(build, call) == [START, LAST]
    assert call.num_cancelled == 0


def test_a_call_is_repeated_only_if_its_replica_dies_before_the_first_piece() -> None:
    assert talk(remote, Pieces(RayActorError()), Pieces(START, LAST)) == [START, LAST]
    start, refusal = talk(remote, Pieces(START, RayActorError()), Pieces(START, LAST))
    assert start == START
    assert (refusal.status, refusal.type) == (503, "unavailable")
    (twice,) = talk(remote, Pieces(RayActorError()), Pieces(RayActorError()), Pieces(START, LAST))
    assert twice.status == 503


@pytest.mark.parametrize(("err", "status"), [(FULL, 429), (AWAY, 503), (None, 504)])
def test_a_full_queue_no_replica_and_a_late_one_are_refusals(
    err: Exception | None, status: int
) -> None:
    call = Pieces(err)
    (refusal,) = talk(remote, call, Pieces(START, LAST))
    assert isinstance(refusal, Refusal)
    assert refusal.status == status
    assert call.num_cancelled == 1


def test_an_answer_that_outlasts_the_deadline_ends_with_a_refusal_and_is_cancelled(
    build: Build,
) -> None:
    call = Pieces(START, TextPiece("b", 1), None, LAST)
    *pieces, refusal = talk(build, call)
    assert pieces == [START, TextPiece("b", 1)]
    assert refusal.status == 504
    assert call.num_cancelled == 1


def test_a_client_that_disconnects_cancels_the_call(build: Build) -> None:
    call = Pieces(START, TextPiece("b", 1), LAST)

    async def leave() -> None:
        pieces = build([call]).talk("adviser@1", CONVERSATION)
        assert await anext(pieces) == START
        await pieces.aclose()
        assert call.num_cancelled == 1  # at once, not when the generator is collected

    asyncio.run(leave())


def test_a_request_that_is_cancelled_while_it_waits_cancels_the_call(build: Build) -> None:
    call = Pieces(None)

    async def give_up() -> None:
        waiting = asyncio.ensure_future(anext(build([call]).talk("adviser@1", CONVERSATION)))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(give_up())
    assert call.num_cancelled == 1


QUESTION = Inquiry("a", ())


def statuses(results: Sequence[Any]) -> list[int]:
    return [one.status if isinstance(one, Refusal) else 200 for one in results]


def test_a_replica_of_its_own_runs_as_many_as_may_lets_others_wait_and_refuses_the_rest() -> None:
    """Predictions and conversations share the places."""
    running, most = 0, 0

    async def decide(reference: str, inquiry: Inquiry, timeout_s: float) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return "answer"

    async def ask() -> list[Any]:
        calls = local([Pieces(START, LAST)], decide=decide)
        first = await asyncio.gather(*(calls.decide("adviser@1", QUESTION) for _ in range(4)))
        pieces = calls.talk("adviser@1", CONVERSATION)
        assert await anext(pieces) == START  # it has a place until it ends
        others = asyncio.gather(*(calls.decide("adviser@1", QUESTION) for _ in range(3)))
        await asyncio.sleep(0)
        await pieces.aclose()
        return [*first, *await others]

    results = asyncio.run(ask())
    assert statuses(results) == [200, 200, 200, 429, 200, 200, 429]
    assert next(one.retry_after_s for one in results if isinstance(one, Refusal)) == 1
    assert most == 2


def test_a_request_whose_time_is_over_or_whose_client_left_gives_its_place_back() -> None:
    async def decide(reference: str, inquiry: Inquiry, timeout_s: float) -> str:
        await asyncio.sleep(60 if inquiry.text == "slow" else 0)
        return "answer"

    async def ask() -> list[Any]:
        calls = local([], decide=decide)
        slow = Inquiry("slow", ())
        waiting = [asyncio.ensure_future(calls.decide("adviser@1", slow)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # the third has its place now
        waiting[2].cancel()
        (late,) = await asyncio.gather(waiting[1])
        (talk,) = [piece async for piece in local([Pieces(None)]).talk("adviser@1", CONVERSATION)]
        results = await asyncio.gather(*(calls.decide("adviser@1", QUESTION) for _ in range(3)))
        return [late, talk, *results]

    assert statuses(asyncio.run(ask())) == [504, 504, 200, 200, 200]


def health_by(calls: Calls) -> Any:
    service = object.__new__(Ingress)
    service.references, service.calls = ("adviser@1",), calls
    return asyncio.run(service.health())


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

    calls = remote([])
    calls.deployments["adviser@1"] = cast(
        Any,
        SimpleNamespace(broadcast=broadcast, app_name="medray", deployment_name="adviser@1"),
    )
    deployments = {} if deployment is None else {"adviser@1": deployment}
    details = {"applications": {"medray": {"deployments": deployments}}}
    monkeypatch.setattr(
        remote_calls,
        "_get_global_client",
        lambda: SimpleNamespace(get_serve_details=lambda: details),
    )
    health = health_by(calls)
    assert health.releases["adviser@1"].status == status
    assert health.status == whole
    calls.missing = {"adviser@1": "has no release 'adviser'"}
    health = health_by(calls)
    if status == "idle":  # no replica can say that it waits
        assert (health.status, health.releases["adviser@1"].status) == ("degraded", "missing")
        assert health.releases["adviser@1"].error == "has no release 'adviser'"
    else:
        assert health.releases["adviser@1"].status == status


WAITING = ReplicaReport(
    replica="a", release="adviser", version=0, precision="", error="has no release 'adviser'"
)
READY = ReplicaReport(replica="a", release="adviser", version=1, precision="fp32")
FAULTY = ReplicaReport(
    replica="b",
    release="adviser",
    version=1,
    precision="fp32",
    error="ArtifactError",
    error_version=2,
)


def reporting(*answers: Sequence[Any] | Exception) -> Any:
    """A handle whose replicas answer one broadcast after the other."""
    left = iter(answers)

    async def results(**options: Any) -> Any:
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return SimpleNamespace(
        broadcast=lambda method, reference: SimpleNamespace(results_async=results)
    )


def test_a_release_that_replicas_wait_for_is_missing_until_one_has_it() -> None:
    calls = remote([])
    calls.missing = {"adviser@1": "it was not there"}
    calls.deployments["adviser@1"] = reporting([WAITING], [READY])
    health = health_by(calls)
    assert (health.status, health.releases["adviser@1"].status) == ("degraded", "missing")
    assert health.releases["adviser@1"].error == "has no release 'adviser'"
    health = health_by(calls)
    assert (health.status, health.releases["adviser@1"].status, calls.missing) == ("ok", "ok", {})


def test_a_replica_of_its_own_reports_the_health_of_all_replicas() -> None:
    calls = local([])
    calls.deployment = reporting(
        [READY], [FAULTY, READY], [READY, RayActorError()], TimeoutError(), AWAY
    )
    healths = [health_by(calls) for _ in range(5)]
    assert [health.status for health in healths] == ["ok", *["degraded"] * 3, "loading"]
    assert [report.replica for report in healths[1].releases["adviser@1"].replicas] == ["a", "b"]
