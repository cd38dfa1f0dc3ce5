import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medray.serving.streams import LateError, OverloadedError, Streams, TooManyTokensError
from medray.serving.text_model import Batcher, TextModel, Turn
from medray.tasks.classification import ClassifyRequest


class Echo:
    """An engine that answers a row with its first token and length, and remembers its batches."""

    tokenizer: Any = None

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()
        self.fail = False

    def logits(self, inputs: Sequence[Sequence[int]]) -> np.ndarray:
        self.go.wait(10)
        if self.fail:
            raise RuntimeError("broken")
        self.batches.append([len(row) for row in inputs])
        return np.array([[row[0], len(row)] for row in inputs], dtype=np.float32)


def later() -> float:
    return time.monotonic() + 10


def batcher(
    engine: Echo,
    thread: ThreadPoolExecutor,
    *,
    token_budget: int = 64,
    waiting_tokens: int = 100_000,
    overhead: int = 1000,
) -> Batcher:
    return Batcher(
        engine,
        thread,
        token_budget=token_budget,
        waiting_tokens=waiting_tokens,
        overhead_tokens=overhead,
    )  # type: ignore[arg-type]


def turn(rows_batcher: Batcher, *, max_tokens: int) -> Turn:
    def never() -> Any:
        raise AssertionError("nothing is generated here")

    return Turn(
        rows_batcher,
        Streams(never, rows_batcher.thread, token_budget=1, waiting_tokens=1),
        max_tokens,
        later(),
    )


def batches_behind(
    engine: Echo, thread: ThreadPoolExecutor, requests: list[list[list[int]]], **settings: int
) -> list[np.ndarray]:
    """All requests wait together before the first batch is computed."""
    engine.go.clear()
    blocker = thread.submit(engine.go.wait, 10)
    rows_batcher = batcher(engine, thread, **settings)
    with ThreadPoolExecutor(len(requests)) as clients:
        answers = []
        for number, rows in enumerate(requests):
            answers.append(clients.submit(rows_batcher.logits, rows, later()))
            while sum(len(rows) for rows in requests[: number + 1]) > rows_batcher.num_waiting:
                time.sleep(0.001)
        engine.go.set()
        blocker.result()
        return [answer.result(timeout=10) for answer in answers]


def test_a_task_of_questions_alone_takes_no_request_of_texts() -> None:
    class Questions:
        pass

    release: Any = SimpleNamespace(task=Questions())
    model = TextModel(release, Any, Any)  # type: ignore[arg-type]
    assert model.path == "/v1/decisions"
    assert not model.takes(ClassifyRequest(text="a"))


def test_every_request_gets_its_own_rows_in_their_order_whatever_batch_they_were_in() -> None:
    rng = np.random.default_rng(0)
    requests = [
        [[100 * client + row] * int(rng.integers(1, 40)) for row in range(rng.integers(1, 9))]
        for client in range(20)
    ]
    with ThreadPoolExecutor(1) as thread:
        answers = batches_behind(Echo(), thread, requests)
    for rows, answer in zip(requests, answers, strict=True):
        assert answer.tolist() == [[row[0], len(row)] for row in rows]


def test_batches_keep_to_the_budget_and_hold_rows_of_similar_length() -> None:
    engine = Echo()
    with ThreadPoolExecutor(1) as thread:
        batches_behind(
            engine,
            thread,
            [[[1] * 30], [[2] * 4], [[3] * 32], [[4] * 5], [[5] * 200], [[6] * 3]],
            token_budget=64,
        )
    assert [sorted(batch) for batch in engine.batches] == [[30, 32], [3, 4, 5], [200]]
    assert all(len(batch) == 1 or len(batch) * max(batch) <= 64 for batch in engine.batches)


def test_a_row_goes_alone_where_padding_would_cost_more_than_a_batch_of_its_own() -> None:
    requests = [[[1] * 30], [[2] * 20], [[3] * 28], [[4] * 19]]
    for overhead, batches in (
        (1, [[30], [20, 19], [28]]),
        (5, [[30, 28], [20, 19]]),
        (40, [[30, 28, 20, 19]]),
    ):
        engine = Echo()
        with ThreadPoolExecutor(1) as thread:
            batches_behind(engine, thread, requests, token_budget=1000, overhead=overhead)
        assert sorted(map(sorted, engine.batches)) == sorted(map(sorted, batches))


def test_the_row_that_waited_longest_goes_first_however_badly_it_fits() -> None:
    engine = Echo()
    with ThreadPoolExecutor(1) as thread:
        batches_behind(engine, thread, [[[1] * 60], *([[[2] * 4]] * 10)], token_budget=64)
    assert engine.batches[0] == [60]


def test_a_full_queue_refuses_and_takes_again_when_it_has_emptied() -> None:
    engine = Echo()
    engine.go.clear()
    with ThreadPoolExecutor(1) as thread, ThreadPoolExecutor(1) as client:
        rows_batcher = batcher(engine, thread, token_budget=10, waiting_tokens=50)
        first = client.submit(rows_batcher.logits, [[1] * 10] * 5, later())
        while rows_batcher.num_waiting != 4:
            time.sleep(0.001)
        with pytest.raises(OverloadedError, match="at most 50 may"):
            rows_batcher.logits([[2] * 20], later())
        engine.go.set()
        assert len(first.result(timeout=10)) == 5
        assert rows_batcher.logits([[2] * 20], later()).tolist() == [[2, 20]]


def test_a_late_request_fails_and_its_rows_are_not_computed() -> None:
    engine = Echo()
    engine.go.clear()
    with ThreadPoolExecutor(1) as thread:
        rows_batcher = batcher(engine, thread, token_budget=4)
        with pytest.raises(LateError):
            rows_batcher.logits([[1] * 4] * 3, time.monotonic() + 0.05)
        engine.go.set()
        rows_batcher.logits([[2] * 3], later())
    assert engine.batches == [
        [4],
        [3],
    ]  # the one that was being computed, and none of the two that waited


def test_a_batch_that_fails_ends_every_request_in_it_and_the_next_batch_succeeds() -> None:
    engine = Echo()
    engine.fail = True
    with ThreadPoolExecutor(1) as thread:
        rows_batcher = batcher(engine, thread)
        with pytest.raises(RuntimeError, match="broken"):
            rows_batcher.logits([[1] * 100, [1]], later())
        engine.fail = False
        assert rows_batcher.logits([[7]], later()).tolist() == [[7, 1]]
        assert not rows_batcher.num_waiting


def test_two_models_share_the_thread_and_both_go_on() -> None:
    old, new = Echo(), Echo()
    with ThreadPoolExecutor(1) as thread, ThreadPoolExecutor(8) as clients:
        first, second = batcher(old, thread, token_budget=4), batcher(new, thread, token_budget=4)
        requests = [
            clients.submit((first, second)[number % 2].logits, [[number + 1] * 4] * 10, later())
            for number in range(8)
        ]
        assert [int(one.result(timeout=10)[9][0]) for one in requests] == list(range(1, 9))


def test_a_request_over_its_token_limit_is_refused_before_it_waits() -> None:
    with ThreadPoolExecutor(1) as thread:
        rows_batcher = batcher(Echo(), thread)
        with pytest.raises(TooManyTokensError, match="the request has 12 tokens; send at most 10"):
            turn(rows_batcher, max_tokens=10).logits([[1] * 6, [1] * 6])
        assert not rows_batcher.num_waiting


class Scorer(Echo):
    """Scores a prompt by its first token and the number of continuations."""

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> np.ndarray:
        self.go.wait(10)
        self.batches.append([len(continuations), *map(len, prompts)])
        return np.array([[row[0]] * len(continuations) for row in prompts], dtype=np.float32)


def test_prompts_with_the_same_continuations_are_scored_together_and_others_apart() -> None:
    engine, two, three = Scorer(), ((1, 2), (3,)), ((1, 2), (3,), (4,))
    with ThreadPoolExecutor(1) as thread, ThreadPoolExecutor(4) as clients:
        engine.go.clear()
        blocker = thread.submit(engine.go.wait, 10)
        rows_batcher = batcher(engine, thread)
        asking = turn(rows_batcher, max_tokens=100)
        answers = [
            clients.submit(asking.score, [[number] * 5], behind)
            for number, behind in enumerate([two, three, two])
        ]
        answers.append(clients.submit(asking.logits, [[9] * 5]))
        while rows_batcher.num_waiting < 4:
            time.sleep(0.001)
        engine.go.set()
        blocker.result()
        outputs = [answer.result(timeout=10).tolist() for answer in answers]
    assert outputs == [[[0, 0]], [[1, 1, 1]], [[2, 2]], [[9, 5]]]
    assert sorted(engine.batches) == [[2, 5, 5], [3, 5], [5]]
    with pytest.raises(
        TooManyTokensError, match="11 tokens"
    ):  # the continuation's last token is only predicted
        turn(rows_batcher, max_tokens=10).score([[1] * 10], two)
