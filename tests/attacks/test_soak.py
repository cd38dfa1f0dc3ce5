"""Ten minutes of everything at once: good requests, bad ones, promotions and killed replicas. No
good request may fail.

`MEDRAY_SOAK_S` sets another length. Prints what was sent, what failed and the memory at start and
end."""

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import load
from support.serve_session import TOKEN, Served, processes, serving

from medray.runtime.cluster import Cluster
from medray.serving import promotion

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(3600)]
SECONDS = float(os.environ.get("MEDRAY_SOAK_S", "600"))
GOOD = [{"text": f"tumour cell growth {number}", "model": "cancer@best"} for number in range(20)]
SERVING = ("ray::ServeReplica:", "ray::ProxyActor", "ray::HAProxyManager")


def request(body: bytes, path: str = "/v1/classify", *headers: str) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: Bearer {TOKEN}",
        "Content-Type: application/json",
        *headers,
    ]
    if not any(line.startswith("Content-Length") for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def chat(**fields: object) -> bytes:
    fields = {
        "model": "adviser",
        "max_tokens": 4,
        "messages": [{"role": "user", "content": "tumour"}],
        **fields,
    }
    return request(json.dumps(fields).encode(), "/v1/chat/completions")


BAD = {
    "broken JSON": request(b"{"),
    "wrong inputs": request(json.dumps({"model": "cancer@best", "inputs": [5] * 30_000}).encode()),
    "too large": request(b"x" * 120_000),
    "endless chunks": request(b"", "/v1/classify", "Content-Length:", "Transfer-Encoding: chunked")[
        :-2
    ]
    + b"\r\n"
    + b"10\r\n"
    + b"x" * 16,
    "many headers": request(b"{}", "/v1/classify", *(f"x-{number}: a" for number in range(5000))),
    "another model": request(json.dumps({"model": "x" * 5000, "text": "a"}).encode()),
    "no token": b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}",
    "extreme temperature": chat(temperature=1e-40),
    "extreme top_p": chat(temperature=1, top_p=1e-300),
    "many turns": chat(
        messages=[{"role": ("user", "assistant")[at % 2], "content": "a"} for at in range(1501)]
    ),
    "a client that leaves": chat(stream=True, max_tokens=2000),
    "half a request": request(b"{}")[:40],
}


def attack(port: int, stop: threading.Event, num_sent: Counter[str], seed: int) -> None:
    chance = random.Random(seed)
    while not stop.is_set():
        name = chance.choice(list(BAD))
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=5) as connection,
        ):
            connection.settimeout(chance.random() * 3 + 0.1)
            connection.sendall(BAD[name])
            answer = connection.recv(200)
            num_sent[
                f"{name}: {answer.split(b' ')[1].decode() if b' ' in answer else 'closed'}"
            ] += 1
        time.sleep(chance.random() * 0.3)


def memory() -> dict[str, float]:
    """MiB by the name of the process, of what serves."""
    sizes: Counter[str] = Counter()
    for pid, command in processes().items():
        name = "HAProxy" if "/haproxy -db " in command else command.split(".")[0]
        if name == "HAProxy" or name.startswith(SERVING):
            with contextlib.suppress(psutil.Error):
                sizes[name] += psutil.Process(pid).memory_full_info().uss / 2**20
    return dict(sizes)


@pytest.fixture
def soak_service(cluster: Cluster, tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as session:
        yield session


def test_no_good_request_fails_beside_attacks_promotions_and_kills(soak_service: Served) -> None:
    stop, num_sent, versions = threading.Event(), Counter[str](), itertools.cycle([2, 3, 5, 1])
    attackers = [
        threading.Thread(
            target=attack, args=(soak_service.port, stop, num_sent, number), daemon=True
        )
        for number in range(4)
    ]
    num_promoted = num_killed = 0
    with load.running(soak_service.port, GOOD, TOKEN, clients=2) as outcome:
        for attacker in attackers:
            attacker.start()
        time.sleep(min(60, SECONDS / 4))  # until everything has been used once
        start, before = time.monotonic(), memory()
        while time.monotonic() < start + SECONDS:
            promotion.promote(
                soak_service.registry,
                f"cancer@{next(versions)}",
                "best",
                soak_service.client,
                timeout_s=180,
            )
            num_promoted += 1
            time.sleep(min(10, SECONDS / 20))
            victim = next(
                pid
                for pid, name in processes().items()
                if name.startswith("ray::ServeReplica:medray:cancer@best")
            )
            os.kill(victim, signal.SIGKILL)
            num_killed += 1
            time.sleep(min(20, SECONDS / 20))
        after = memory()
    stop.set()
    for attacker in attackers:
        attacker.join(timeout=30)
    print(f"{num_promoted} promotions, {num_killed} replicas killed; good requests: {outcome}")
    print(f"bad requests: {dict(sorted(num_sent.items()))}")
    print(f"MiB at start {before}, at the end {after}")
    assert outcome.num_failed == 0, outcome.wrong[:5]
    assert outcome.num_sent > SECONDS
    assert sum(after.values()) < 1.25 * sum(before.values()) + 100
