"""A chat release behind Serve, called by OpenAI's own client: streams, queues, and clients that
disconnect."""

import contextlib
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from support.serve_session import LONG, Served, processes

import medray
from medray.types import DISCLAIMER, Message, Sampling, gather

pytestmark = pytest.mark.ray
MARKER = "xylophonist"


@pytest.fixture(params=["served", "only_talker"])
def either(request: pytest.FixtureRequest) -> Served:
    """An application of several deployments, or of one."""
    session: Served = request.getfixturevalue(request.param)
    return session


@pytest.mark.document(
    "000",
    "answers are streamed while they are generated",
    where="`/v1/chat/completions`",
)
def test_chat_answers_are_those_of_the_loaded_release_streamed_and_not(either: Served) -> None:
    release = medray.load("adviser@1", storage_path=str(either.storage))
    questions = ["tumour cell", "renal failure study of a glucose", "fever"]
    texts = []
    for question in questions:
        prompt = release.task.prompt([Message("user", question)], release.engine.tokenizer, 20)  # type: ignore[attr-defined]
        (text,) = gather(release.engine.generate([prompt], Sampling(max_tokens=20)), 1)
        texts.append((f"{text.text}\n\n{DISCLAIMER}", text.finish, len(prompt), text.num_tokens))

    def whole(question: str) -> tuple[str, str, int, int]:
        answer = either.say(question, max_tokens=20)
        return (
            answer.choices[0].message.content,
            answer.choices[0].finish_reason,
            answer.usage.prompt_tokens,
            answer.usage.completion_tokens,
        )

    def stream(question: str) -> tuple[str, str, int, int]:
        *chunks, last = list(
            either.say(question, max_tokens=20, stream=True, stream_options={"include_usage": True})
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        return (
            text,
            chunks[-1].choices[0].finish_reason,
            last.usage.prompt_tokens,
            last.usage.completion_tokens,
        )

    with ThreadPoolExecutor(6) as clients:  # together, so that they decode together
        pairs = [clients.submit(ask, question) for question in questions for ask in (whole, stream)]
        assert [one.result(timeout=60) for one in pairs] == [one for one in texts for _ in range(2)]
    detail = either.openai.models.retrieve("adviser@1")
    assert detail.model_dump()["system"] == "the study of"
    assert "adviser@1" in [model.id for model in either.openai.models.list()]


def test_the_first_piece_comes_long_before_the_last(served: Served) -> None:
    start = time.monotonic()
    times = [
        time.monotonic() - start
        for chunk in served.say("tumour", max_tokens=300, stream=True)
        if chunk.choices[0].delta.content
    ]
    assert len(times) > 50
    assert times[0] < times[-1] / 3


def test_a_client_that_leaves_frees_its_row_streamed_and_not(either: Served) -> None:
    stream = either.say("tumour", max_tokens=LONG, stream=True)
    next(iter(stream))
    assert either.generating() == 1
    stream.close()
    either.wait_until_generating(0)
    asking = either.openai.with_options(timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        asking.chat.completions.create(
            model="adviser", messages=[{"role": "user", "content": "tumour"}], max_tokens=LONG
        )
    either.wait_until_generating(0)


def test_a_full_queue_is_a_rate_limit_and_empties_again(either: Served) -> None:
    answers: list[Any] = []

    def ask() -> None:
        with contextlib.suppress(openai.APIConnectionError):
            try:
                answers.append(either.say("tumour", max_tokens=LONG, stream=True))
            except openai.RateLimitError as err:
                answers.append(err)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(6)]
    for number, thread in enumerate(
        threads, 1
    ):  # Serve counts who is on the way to a replica as waiting: all at once, more would be refused
        thread.start()
        either.wait_until_generating(min(number, 3))
    end = time.monotonic() + 10
    while len(answers) < 5:  # two get texts, three are refused, one waits
        assert time.monotonic() < end
        time.sleep(0.05)
    refusals = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
    assert len(refusals) == 3
    assert all(
        err.response.headers["retry-after"] == "1" and err.code == "overloaded" for err in refusals
    )
    for answer in answers:
        if not isinstance(answer, openai.RateLimitError):
            answer.close()
    for thread in threads:
        thread.join(timeout=30)
    for answer in answers:
        if not isinstance(answer, openai.RateLimitError):
            answer.close()
    either.wait_until_generating(0)
    assert either.say("tumour", max_tokens=2).usage.completion_tokens <= 2


def test_the_audit_line_has_tokens_and_times_and_no_log_has_a_text(either: Served) -> None:
    answer = either.say(f"tumour {MARKER}", max_tokens=3)
    with pytest.raises(openai.BadRequestError):
        either.say(MARKER, n=2)
    lines = either.audit_lines(answer.id.removeprefix("chatcmpl-"))
    texts = {
        path: path.read_text(errors="replace")
        for path in (either.audit, *either.logs.rglob("*"))
        if path.is_file()
    }
    line = json.loads(lines[0][lines[0].index("{") :])
    assert line["release"] == "adviser@1"
    assert (line["status"], line["outcome"], line["completion_tokens"]) == (
        200,
        "answered",
        answer.usage.completion_tokens,
    )
    assert line["prompt_tokens"] == answer.usage.prompt_tokens
    assert 0 < line["first_token_ms"] <= line["ms"]
    assert [str(path) for path, text in texts.items() if MARKER in text] == []


@pytest.mark.chaos
@pytest.mark.slow
def test_a_replica_that_dies_in_the_middle_is_an_error_event_and_another_one_answers(
    served: Served,
) -> None:
    num_pieces = 0
    with pytest.raises(openai.APIError, match="no replica"):
        for _ in served.say("tumour", max_tokens=LONG, stream=True):
            num_pieces += 1
            if num_pieces == 5:
                (victim,) = [
                    number
                    for number, name in processes().items()
                    if name.startswith("ray::ServeReplica:medray:adviser@1")
                ]
                os.kill(victim, signal.SIGKILL)
    assert num_pieces >= 5
    end = time.monotonic() + 60
    while True:
        try:
            assert served.say("tumour", max_tokens=2).outcome == "answered"
            break
        except openai.InternalServerError:
            assert time.monotonic() < end
            time.sleep(0.5)
