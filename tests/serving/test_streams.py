"""Texts of many requests in one thread: when a request joins, what its client gets, and how a
full queue refuses."""

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from medray.serving.streams import LateError, OverloadedError, Streams
from medray.types import Chunk, Sampling


class Counting:
    """A generation that counts: each step yields a row's next number, up to the number of tokens
    of the request."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.turns: list[tuple[str, list[int]]] = []
        self.go = threading.Event()
        self.go.set()
        self.fail = False

    def row(self, index: int, prompt: Sequence[int], sampling: Sampling) -> Any:
        return SimpleNamespace(
            index=index,
            name=prompt[0],
            most=len(prompt) + sampling.max_tokens,
            left=sampling.max_tokens,
        )

    def admit(self, waiting: Sequence[Any], token_budget: int) -> list[Any]:
        return list(waiting[: max(0, token_budget - len(self.rows))])

    def join(self, rows: Sequence[Any]) -> list[Chunk]:
        self.rows += rows
        return self._say("join", rows)

    def step(self) -> list[Chunk]:
        return self._say("step", list(self.rows))

    def drop(self, rows: Sequence[Any]) -> None:
        self.rows = [row for row in self.rows if row not in rows]

    def _say(self, what: str, rows: Sequence[Any]) -> list[Chunk]:
        self.go.wait(10)
        self.turns.append((what, [row.name for row in rows]))
        if self.fail:
            raise RuntimeError("broken")
        chunks = []
        for row in rows:
            row.left -= 1
            chunks.append(Chunk(row.index, f"{row.name} ", None if row.left else "length", 1))
        self.rows = [row for row in self.rows if row.left]
        return chunks


def later() -> float:
    return time.monotonic() + 10


def build_streams(
    generation: Counting,
    thread: ThreadPoolExecutor,
    *,
    rows: int = 100,
    waiting_tokens: int = 10**8,
) -> Streams:
    return Streams(lambda: generation, thread, token_budget=rows, waiting_tokens=waiting_tokens)  # type: ignore[arg-type,return-value]


def sampling_of(num: int) -> Sampling:
    return Sampling(max_tokens=num)


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_requests_at_once_are_generated_together_and_each_gets_its_own_text() -> None:
    generation = Counting()
    with ThreadPoolExecutor(1) as thread, ThreadPoolExecutor(6) as clients:
        generation.go.clear()
        streams = build_streams(generation, thread)
        answers = [
            clients.submit(streams.collect, [[number]], sampling_of(4), later())
            for number in range(6)
        ]
        wait_for(lambda: streams.num_waiting + streams.num_running == 6)
        generation.go.set()
        assert [answer.result(timeout=10)[0].text for answer in answers] == [
            f"{number} " * 4 for number in range(6)
        ]
    assert len(generation.turns) < 12  # one by one they would be twenty-four
    assert streams.num_running == streams.num_waiting == 0


def test_between_two_prompts_that_join_those_under_way_get_a_step() -> None:
    generation = Counting()
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with ThreadPoolExecutor(1) as thread:
        streams = build_streams(generation, thread, rows=3)
        generation.go.clear()
        streams.start([0], sampling_of(9), results.put, later())
        wait_for(lambda: streams.num_running == 1)
        for number in (1, 2, 3, 4):
            streams.start([number], sampling_of(2), results.put, later())
        generation.go.set()
        wait_for(lambda: streams.num_running == streams.num_waiting == 0)
    kinds = [what for what, _ in generation.turns]
    assert kinds[:5] == ["join", "step", "join", "step", "join"]
    assert all(len(rows) <= 3 for _, rows in generation.turns)
    assert [rows for what, rows in generation.turns if what == "join"] == [[0], [1, 2], [3, 4]]


def test_a_cancelled_text_frees_its_row_and_sends_no_more_pieces() -> None:
    generation = Counting()
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with ThreadPoolExecutor(1) as thread:
        streams = build_streams(generation, thread, rows=1)
        long = streams.start([7], sampling_of(10**6), results.put, later())
        results.get(timeout=10)
        waiting = streams.start(
            [8],
            sampling_of(10**5),
            lambda texts: pytest.fail("was cancelled while it waited"),
            later(),
        )
        streams.cancel(waiting)
        streams.cancel(long)
        assert streams.collect([[9]], sampling_of(2), later())[0].text == "9 9 "
        wait_for(lambda: not generation.rows)
    assert [8] not in [rows for _, rows in generation.turns]


def test_a_request_past_its_deadline_fails_while_it_waits_and_while_it_generates() -> None:
    generation = Counting()
    with ThreadPoolExecutor(1) as thread, ThreadPoolExecutor(2) as clients:
        streams = build_streams(generation, thread, rows=1, waiting_tokens=10**8)
        running = clients.submit(streams.collect, [[1]], sampling_of(10**6), time.monotonic() + 0.2)
        wait_for(lambda: streams.num_running == 1)
        waiting = clients.submit(streams.collect, [[2]], sampling_of(10**6), time.monotonic() + 0.1)
        for late in (running, waiting):
            with pytest.raises(LateError):
                late.result(timeout=10)
        wait_for(lambda: streams.num_running == streams.num_waiting == 0)


def test_a_full_queue_refuses_and_takes_again_when_it_has_emptied() -> None:
    generation = Counting()
    generation.go.clear()
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with ThreadPoolExecutor(1) as thread:
        streams = build_streams(generation, thread, rows=1, waiting_tokens=50)
        streams.start([1], sampling_of(5), results.put, later())
        wait_for(lambda: streams.num_running == 1)
        streams.start([2], sampling_of(40), results.put, later())
        with pytest.raises(OverloadedError, match="at most 50 may"):
            streams.start([3], sampling_of(9), results.put, later())
        generation.go.set()
        wait_for(lambda: streams.num_running == streams.num_waiting == 0)
        assert streams.collect([[3]], sampling_of(9), later())[0].num_tokens == 9


def test_a_step_that_fails_ends_every_request_in_it_and_later_requests_succeed() -> None:
    generation = Counting()
    generation.fail = True
    with ThreadPoolExecutor(1) as thread:
        streams = build_streams(generation, thread)
        with pytest.raises(RuntimeError, match="broken"):
            streams.collect([[1], [2]], sampling_of(5), later())
        wait_for(lambda: streams.num_running == streams.num_waiting == 0)
        generation.fail = False
        assert streams.collect([[3]], sampling_of(2), later())[0].text == "3 3 "


def test_prompts_of_one_request_come_back_in_their_order_each_with_a_seed_of_its_own() -> None:
    generation = Counting()
    seeds: list[int | None] = []
    row = generation.row
    generation.row = lambda index, prompt, sampling: (
        seeds.append(sampling.seed) or row(index, prompt, sampling)
    )  # type: ignore[method-assign,func-returns-value]
    with ThreadPoolExecutor(1) as thread:
        texts = build_streams(generation, thread).collect(
            [[4], [5], [6]], Sampling(max_tokens=2, seed=3), later()
        )
    assert [chunk.text for chunk in texts] == ["4 4 ", "5 5 ", "6 6 "]
    assert seeds == [3, 4, 5]


def test_others_compute_in_the_same_thread_between_two_steps() -> None:
    generation = Counting()
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with ThreadPoolExecutor(1) as thread:
        streams = build_streams(generation, thread)
        stream = streams.start([1], sampling_of(10**6), results.put, later())
        assert [thread.submit(lambda at=at: at).result(timeout=5) for at in range(3)] == [0, 1, 2]
        assert streams.num_running == 1
        streams.cancel(stream)
