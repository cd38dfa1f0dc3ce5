"""Conversations that are made to be slow or to fail: others are answered meanwhile."""

import asyncio
import json
import math
import queue
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from support import fake_service, tiny

from medray.engines.generation import Generation, RowError
from medray.engines.transformers import TransformersEngine
from medray.errors import ConfigError
from medray.registry.registry import Registry
from medray.serving.api import make_api
from medray.serving.chat import ChatModel
from medray.serving.openai_schemas import ChatRequest
from medray.serving.opening import open_model
from medray.serving.replica import ReleaseReplica
from medray.serving.schemas import CHAT_PATH, AppOptions, Limits
from medray.serving.service import Conversation
from medray.serving.streams import LateError, Streams
from medray.text import chat_template
from medray.text.chat_template import ChatEncoder
from medray.types import Chunk, Message, Sampling, gather

TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}patient {% endif %}"
    "{% for message in messages %}{{ message['role'] + ' ' + message['content'] + ' study ' }}{% "
    "endfor %}"
)


def conversation(num: int) -> list[Message]:
    turns = [
        Message("user" if at % 2 == 0 else "assistant", f"{tiny.WORDS[at % 30]} {at}")
        for at in range(num)
    ]
    return turns if turns[-1].role == "user" else turns[:-1]


@pytest.fixture(params=["chat", "plain"])
def chat(request: pytest.FixtureRequest) -> ChatEncoder:
    tokenizer = tiny.tokenizer("llama")
    tokenizer.chat_template = TEMPLATE
    return ChatEncoder(tokenizer, request.param)


@pytest.mark.parametrize(
    "content", ["\\ud800", [{"type": "text", "text": "\\ud800"}]], ids=["text", "part"]
)
def test_half_a_surrogate_pair_is_refused_before_a_tokenizer_fails_at_it(content: Any) -> None:
    client = TestClient(make_api(fake_service.Service("adviser@best"), Limits(), None))
    body = json.dumps({"messages": [{"role": "user", "content": content}]}).replace("\\\\", "\\")
    answer = client.post(CHAT_PATH, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request")


@pytest.mark.parametrize("system", [(), (Message("system", "blood pressure"),)])
@pytest.mark.parametrize("room", [16, 20, 60, 200])
def test_of_a_long_conversation_the_most_turns_that_fit_are_read(
    chat: ChatEncoder, room: int, system: tuple[Message, ...]
) -> None:
    turns = conversation(60)
    wholes = [chat.prompt([*system, *turns[at:]], 10**6).tokens for at in range(0, len(turns), 2)]
    expected_tokens = next((tokens for tokens in wholes if len(tokens) <= room), None)
    prompt = chat.prompt([*system, *turns], room)
    assert prompt.truncated
    assert (
        len(prompt.tokens) == room if expected_tokens is None else prompt.tokens == expected_tokens
    )


def test_each_turn_is_encoded_once_and_the_template_is_filled_in_a_few_times(
    chat: ChatEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    lengths: list[int] = []
    answers, fill = chat_template.answers, ChatEncoder.fill

    def counting_tokenizer(texts: Sequence[str], *rest: Any, **options: Any) -> Any:
        encoded.extend(texts)
        return answers(texts, *rest, **options)

    def counted_fill(self: ChatEncoder, turns: Sequence[Message], *, is_open: bool) -> str:
        lengths.append(len(turns))
        return fill(self, turns, is_open=is_open)

    monkeypatch.setattr(chat_template, "answers", counting_tokenizer)
    monkeypatch.setattr(ChatEncoder, "fill", counted_fill)
    turns = conversation(999)
    assert chat.prompt(turns, 100).truncated
    assert len(encoded) == len(turns) == 999
    assert len(lengths) <= 3 + math.log2(999)


def test_of_a_turn_that_is_far_too_long_only_what_may_be_read_is_encoded(
    chat: ChatEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    answers = chat_template.answers

    def counting_tokenizer(texts: Sequence[str], *rest: Any, **options: Any) -> Any:
        encoded.extend(texts)
        return answers(texts, *rest, **options)

    monkeypatch.setattr(chat_template, "answers", counting_tokenizer)
    words = [tiny.WORDS[at * at % 37] for at in range(100_000)]
    long = [Message("user", "fever"), Message("assistant", "no"), Message("user", " ".join(words))]
    prompt = chat.prompt(long, 60)
    assert max(map(len, encoded)) <= 64 * 60
    assert (len(prompt.tokens), prompt.truncated) == (60, True)
    monkeypatch.setattr(chat_template, "_MOST_CHARACTERS", 10**6)
    assert chat.prompt(long, 60) == prompt
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="too few beside a system prompt of 1000000 characters"):
        chat.prompt([Message("system", "a" * 10**6), *long], 60)


@pytest.mark.parametrize("stream", [False, True])
def test_more_messages_than_are_read_are_refused_before_anything_is_done_with_them(
    stream: bool,
) -> None:
    service = fake_service.Service()
    http = TestClient(make_api(service, Limits(messages=5), None, mask_identifiers=True))
    messages = [{"role": turn.role, "content": turn.content} for turn in conversation(7)]
    refusal = http.post(
        CHAT_PATH, json={"model": "adviser", "messages": messages, "stream": stream}
    )
    assert refusal.status_code == 400
    assert (
        refusal.json()["error"]["message"]
        == "messages: one request may hold at most 5; leave out the oldest"
    )
    assert not service.talks
    assert (
        http.post(
            CHAT_PATH, json={"model": "adviser", "messages": messages[2:], "stream": stream}
        ).status_code
        == 200
    )


@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 1e-40},
        {"temperature": 5e-324},
        {"top_p": 1e-300},
        {"top_p": 5e-324, "temperature": 1},
    ],
)
def test_extreme_parameters_become_the_nearest_ones_that_can_be_computed(
    extreme: dict[str, float],
) -> None:
    request = ChatRequest.model_validate(
        {"messages": [{"role": "user", "content": "a"}], **extreme}
    )
    sampling = request.conversation().sampling
    assert sampling.temperature == 0 or sampling.temperature >= 0.01
    assert float(torch.tensor(sampling.top_p, dtype=torch.float32)) > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": 1 << 200},
        {"seed": 1 << 63},
        {"stop": "x" * 400_000},
        {"stop": ["x" * 1001]},
        {"temperature": -1},
    ],
)
def test_parameters_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    http = TestClient(make_api(fake_service.Service(), Limits(), None))
    refusal = http.post(
        CHAT_PATH,
        json={"model": "adviser", "messages": [{"role": "user", "content": "a"}], **wrong},
    )
    assert refusal.status_code == 400
    assert next(iter(wrong)) in refusal.json()["error"]["message"]


PROMPTS = [[10, 11, 12], [20] * 7, [9, 13, 14]]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    from medray.registry.loading import load

    own_engine = load(tiny.checkpoint("instruct"), precision="fp32").engine
    assert isinstance(own_engine, TransformersEngine)
    return own_engine


def run(generation: Generation, first: Sequence[Chunk | RowError]) -> dict[int, str | Exception]:
    """What each row came to."""
    items = list(first)
    while generation.rows:
        items += generation.step()
    ends: dict[int, str | Exception] = {
        item.index: item.reason for item in items if isinstance(item, RowError)
    }
    texts = gather([item for item in items if isinstance(item, Chunk)], len(PROMPTS))
    return {at: ends.get(at, text.text) for at, text in enumerate(texts)}


def test_a_row_that_cannot_be_sampled_ends_alone(engine: TransformersEngine) -> None:
    alone = run(
        fresh := engine.generation(),
        fresh.join([fresh.row(at, PROMPTS[at], Sampling(max_tokens=8)) for at in range(3)]),
    )
    generation = engine.generation()
    poison = Sampling(max_tokens=8, temperature=1e-40)  # as a request's own bounds let none through
    rows = [
        generation.row(at, PROMPTS[at], poison if at == 1 else Sampling(max_tokens=8))
        for at in range(3)
    ]
    chunks = run(generation, generation.join(rows))
    assert isinstance(chunks[1], RuntimeError)
    assert (chunks[0], chunks[2]) == (alone[0], alone[2])


def test_a_tiny_top_p_takes_the_most_probable_token(engine: TransformersEngine) -> None:
    generation = engine.generation()
    kinds = [
        Sampling(max_tokens=8),
        Sampling(max_tokens=8, temperature=1, top_p=1e-300),
        Sampling(max_tokens=8, temperature=1, top_p=5e-324),
    ]
    chunks = run(
        generation,
        generation.join([generation.row(at, PROMPTS[0], kind) for at, kind in enumerate(kinds)]),
    )
    assert chunks[0] == chunks[1] == chunks[2]


def test_a_prompt_that_cannot_be_read_leaves_the_rows_under_way(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = engine.generation()
    under_way = list(generation.join([generation.row(0, PROMPTS[0], Sampling(max_tokens=8))]))

    def out_of_memory(*args: Any, **options: Any) -> Any:
        raise MemoryError

    model = type(engine.model.network)
    forward = model.forward
    monkeypatch.setattr(model, "forward", out_of_memory)
    (refusal,) = generation.join([generation.row(1, PROMPTS[1], Sampling(max_tokens=8))])
    assert isinstance(refusal, RowError)
    monkeypatch.setattr(model, "forward", forward)
    fresh = engine.generation()
    assert (
        run(generation, under_way)[0]
        == run(fresh, fresh.join([fresh.row(0, PROMPTS[0], Sampling(max_tokens=8))]))[0]
    )


def test_the_client_of_a_row_that_fails_gets_an_error_and_the_others_get_their_texts(
    engine: TransformersEngine,
) -> None:
    with ThreadPoolExecutor(1) as thread:
        streams = Streams(engine.generation, thread, token_budget=10**6, waiting_tokens=10**6)
        answers: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in PROMPTS]
        for at, prompt in enumerate(PROMPTS):
            sampling = Sampling(max_tokens=30, temperature=1e-40 if at == 1 else 0)
            streams.start(prompt, sampling, answers[at].put, time.monotonic() + 60)

        def last(answer: "queue.SimpleQueue[Any]") -> Any:
            while True:
                item = answer.get(timeout=60)
                if isinstance(item, Exception) or item.finish:
                    return item

        ends = [last(answer) for answer in answers]
        assert [isinstance(end, Chunk) for end in ends] == [True, False, True]
        assert isinstance(ends[1], RuntimeError)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatModel]:
    release = Registry(str(tmp_path_factory.mktemp("chat"))).publish(
        tiny.checkpoint("instruct"), "adviser"
    )
    with ThreadPoolExecutor(1) as thread:
        model = open_model(
            release,
            AppOptions(releases=("adviser",), precision="fp32", token_budget=256),
            thread,
            device="cpu",
        )
        assert isinstance(model, ChatModel)
        yield model


QUESTION = Conversation((Message("user", "glucose"),), Sampling(), 4, whole=True)


def test_a_conversation_is_not_read_after_its_time(served: ChatModel) -> None:
    class NoPrompt:
        options = served.task.options

        def prompt(self, *args: Any) -> Any:
            raise AssertionError("read for nobody")

    with pytest.raises(LateError):
        replace(served, release=replace(served.release, task=NoPrompt())).begin(
            QUESTION, Limits(), time.monotonic() - 1, lambda chunk: None
        )


class Replica(ReleaseReplica):
    def __init__(self, model: ChatModel) -> None:
        self.followers = {"adviser": SimpleNamespace(model=model)}  # type: ignore[dict-item]
        self.options = AppOptions(releases=("adviser",))
        self.requests = ThreadPoolExecutor(1)


def test_a_client_that_leaves_while_its_conversation_waits_to_be_read_makes_no_work(
    served: ChatModel,
) -> None:
    starts: list[int] = []

    class NotingTask:
        options = served.task.options

        def prompt(self, *args: Any) -> Any:
            starts.append(1)
            return served.task.prompt(*args)

    replica = Replica(replace(served, release=replace(served.release, task=NotingTask())))
    replica.requests.submit(time.sleep, 0.5)

    async def leave() -> None:
        pieces = replica.talk("adviser", QUESTION, 30.0)
        first = asyncio.ensure_future(anext(pieces))
        await asyncio.sleep(0.1)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(leave())
    replica.requests.shutdown()
    assert not starts
    assert served.streams.num_running == served.streams.num_waiting == 0
