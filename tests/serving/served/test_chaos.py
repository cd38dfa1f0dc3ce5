"""What is lost when processes die under load, and how replicas come and go with it. Prints what was
sent and what failed."""

import os
import signal
import time

import pytest
from support import load
from support.serve_session import TOKEN, Served, processes

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.slow]
BODIES = [{"text": f"tumour cell growth {number}", "model": "cancer@best"} for number in range(20)]


def pids(name: str) -> list[int]:
    return [number for number, command in processes().items() if command.startswith(name)]


def wait_for(name: str, count: int, *, besides: int = 0, seconds: float = 60) -> float:
    """Seconds until `count` processes of a name are there, a dead one not counted."""
    start = time.monotonic()
    while len([pid for pid in pids(name) if pid != besides]) != count:
        assert time.monotonic() < start + seconds, f"{name}: {pids(name)}"
        time.sleep(0.2)
    return time.monotonic() - start


@pytest.mark.parametrize(
    ("fixture", "deployment"),
    [
        ("served", "medray:cancer@best"),
        ("served", "medray:Ingress"),
        ("only_classifier", "only-cancer:cancer@best"),
    ],
)
def test_a_killed_replica_costs_no_request(
    request: pytest.FixtureRequest, fixture: str, deployment: str
) -> None:
    """The ingress repeats requests to a release, and HAProxy those to an ingress or to a replica
    that is its own."""
    service: Served = request.getfixturevalue(fixture)
    name = f"ray::ServeReplica:{deployment}"
    with load.running(service.port, BODIES, TOKEN, path=service.path) as outcome:
        time.sleep(2)
        for _ in range(3):
            victim = pids(name)[0]
            os.kill(victim, signal.SIGKILL)
            duration = wait_for(name, 2, besides=victim)
            time.sleep(8)
            print(f"replica {victim} killed, another process after {duration:.1f} s")
    print(f"three replicas killed: {outcome}")
    assert outcome.num_failed == 0, outcome.wrong[:5]
    assert outcome.num_sent > 100


@pytest.mark.parametrize("name", ["HAProxy", "ray::HAProxyManager"])
def test_a_killed_proxy_is_back_within_seconds(served: Served, name: str) -> None:
    with load.running(served.port, BODIES, TOKEN) as outcome:
        time.sleep(2)
        victims = pids(name) if name.startswith("ray::") else haproxies()
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        time.sleep(20)
    print(f"{name} {victims} killed: {outcome}")
    assert victims
    assert outcome.gap() < 15
    assert outcome.statuses.keys() <= {0, 200, 503}


def haproxies() -> list[int]:
    return [number for number, command in processes().items() if "/haproxy -db -f " in command]


def test_replicas_come_with_load_and_go_without_it(served: Served) -> None:
    name = "ray::ServeReplica:medray:cancer@1"
    trace = []
    bodies = [{"inputs": ["tumour cell growth stage " * 15] * 16, "model": "cancer@1"}]
    start = time.monotonic()

    def look(until: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        while len(pids(name)) != until:
            assert time.monotonic() < end, trace
            if not trace or trace[-1][1] != len(pids(name)):
                trace.append((round(time.monotonic() - start, 1), len(pids(name))))
            time.sleep(0.25)
        trace.append((round(time.monotonic() - start, 1), until))

    with load.running(served.port, bodies, TOKEN, clients=8) as outcome:
        look(3, 60)
        time.sleep(5)
    print(f"under load: {outcome}")
    look(1, 90)
    print(f"replicas over time (s, count): {trace}")
    assert outcome.num_failed == 0
