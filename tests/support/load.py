"""Clients that send requests without a pause while something happens to the service, and the
outcome of every request."""

import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outcome:
    statuses: Counter[int] = field(default_factory=Counter)  # 0: no response
    versions: Counter[int] = field(default_factory=Counter)
    answers: list[tuple[float, int, float]] = field(default_factory=list)  # time, status, seconds
    wrong: list[str] = field(default_factory=list)

    @property
    def num_sent(self) -> int:
        return sum(self.statuses.values())

    @property
    def num_failed(self) -> int:
        return self.num_sent - self.statuses[200]

    def gap(self) -> float:
        """The longest time without a 200, in seconds."""
        times = sorted(when for when, status, _ in self.answers if status == 200)
        return max(
            (later - earlier for earlier, later in itertools.pairwise(times)), default=float("inf")
        )

    def until(self, version: int, more: int = 25, seconds: float = 60) -> None:
        """Wait until a version has answered `more` further requests."""
        target, end = self.versions[version] + more, time.monotonic() + seconds
        while self.versions[version] < target:
            assert time.monotonic() < end, f"version {version} does not answer: {self}"
            time.sleep(0.01)

    def __str__(self) -> str:
        return (
            f"{self.num_sent} sent, {self.num_failed} failed, {dict(self.statuses)}, by version "
            f"{dict(self.versions)}, longest gap {self.gap():.2f} s"
        )


PATH = "/v1/classify"


def ask(
    port: int,
    body: dict[str, Any],
    token: str | None = None,
    *,
    timeout_s: float = 60,
    path: str = PATH,
) -> tuple[int, dict[str, Any], dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        return _ask(connection, body, token, path)
    finally:
        connection.close()


def _ask(
    connection: http.client.HTTPConnection, body: dict[str, Any], token: str | None, path: str
) -> tuple[int, dict[str, Any], dict[str, str]]:
    headers = {"content-type": "application/json"} | (
        {"authorization": f"Bearer {token}"} if token else {}
    )
    connection.request("POST", path, json.dumps(body), headers)
    answer = connection.getresponse()
    raw = answer.read()
    try:
        return (
            answer.status,
            json.loads(raw),
            {name.lower(): value for name, value in answer.getheaders()},
        )
    except ValueError:
        return answer.status, {"raw": raw.decode(errors="replace")}, {}


@contextmanager
def running(
    port: int,
    bodies: Sequence[dict[str, Any]],
    token: str | None = None,
    *,
    clients: int = 8,
    path: str = PATH,
) -> Iterator[Outcome]:
    """Run clients. Each sends the next request as soon as it has a response, and repeats none that
    failed."""
    outcome, stop, lock = Outcome(), threading.Event(), threading.Lock()

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        position = number
        while not stop.is_set():
            start = time.monotonic()
            try:
                body = bodies[position % len(bodies)]
                status, response, _ = _ask(connection, body, token, path)
            except (OSError, http.client.HTTPException):
                connection.close()
                status, response = 0, {}
            end = time.monotonic()
            with lock:
                outcome.statuses[status] += 1
                outcome.answers.append((end, status, end - start))
                if status == 200:
                    outcome.versions[response["version"]] += 1
                else:
                    outcome.wrong.append(str(response)[:200])
            if status == 0:
                time.sleep(0.05)  # a connection that is refused returns at once
            position += clients
        connection.close()

    threads = [
        threading.Thread(target=client, args=(number,), daemon=True) for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        yield outcome
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=90)
