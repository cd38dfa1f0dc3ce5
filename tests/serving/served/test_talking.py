"""A release that talks behind Serve, asked by OpenAI's own client: streams, queues, and clients that leave."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import tiny
from session import TOKEN, end_serve, processes
from transformers import LlamaForCausalLM

import medray
from medray.client import Client
from medray.data.base import Message
from medray.facts import DISCLAIMER
from medray.generation import Sampling, gather
from medray.registry import Registry
from medray.runtime import Cluster, free_port
from medray.serving import keys, local
from medray.serving.schemas import AppOptions

pytestmark = pytest.mark.ray
MARKER = "xylophonist"
LONG = 3500  # tokens: seconds of work for a tiny model


@dataclass(frozen=True)
class Talking:
    url: str
    storage: Path
    logs: Path

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=TOKEN, max_retries=0, timeout=60)

    @property
    def client(self) -> Client:
        return Client(self.url, TOKEN)

    def say(self, text: str, **others: Any) -> Any:
        messages: Any = [{"role": "user", "content": text}]
        return self.openai.chat.completions.create(**{"model": "adviser", "messages": messages, **others})

    def generating(self) -> int:
        return sum(replica["generating"] for replica in self.client.health()["releases"]["adviser@1"]["replicas"])

    def wait_until_generating(self, wanted: int) -> None:
        end = time.monotonic() + 20
        while self.generating() != wanted:
            assert time.monotonic() < end, self.generating()
            time.sleep(0.1)


@pytest.fixture(scope="module")
def talking(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talking]:
    """One replica, which generates two long texts at a time and lets one wait."""
    import ray

    place = tmp_path_factory.mktemp("talking")
    base = tiny.base(place, "llama", max_position_embeddings=4096)
    model = LlamaForCausalLM.from_pretrained(base)
    model.lm_head.weight.data[tiny.tokenizer("llama").eos_token_id] = (
        0  # other tokens are always more probable: no text ends before it is told to
    )
    model.save_pretrained(base)
    checkpoint = (
        tiny.trial(tiny.instruct_study(place, "train={max_steps: 1, learning_rate: 1e-9}", "train.epochs=null"), place).run().checkpoint
    )
    Registry(str(place / "runs")).publish(checkpoint, "adviser")
    (place / "tokens").write_text(keys.digest(TOKEN) + "\n")
    options = AppOptions.model_validate(
        {
            "releases": ["adviser@1"],
            "storage_path": str(place / "runs"),
            "precision": "fp32",
            "tokens_file": str(place / "tokens"),
            "generation_tokens": 7500,
            "limits": {"tokens": 4000, "waiting_tokens": 4000, "new_tokens": LONG, "timeout_s": 60},
        }
    )
    port = free_port()
    try:
        with local.serving(options, host="127.0.0.1", port=port):
            logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
            yield Talking(f"http://127.0.0.1:{port}", place / "runs", logs)
    finally:
        end_serve()


def test_what_is_told_is_what_the_loaded_release_says_streamed_and_not(talking: Talking) -> None:
    loaded = medray.load("adviser@1", storage_path=str(talking.storage)).loaded
    questions = ["tumour cell", "renal failure study of a glucose", "fever"]
    wanted = []
    for question in questions:
        prompt = loaded.task.prompt([Message("user", question)], loaded.engine.tokenizer, 20)  # type: ignore[attr-defined]
        (text,) = gather(loaded.engine.generate([prompt], Sampling(max_tokens=20)), 1)
        wanted.append((f"{text.text}\n\n{DISCLAIMER}", text.finish, len(prompt), text.num_tokens))

    def whole(question: str) -> tuple[str, str, int, int]:
        found = talking.say(question, max_tokens=20)
        return found.choices[0].message.content, found.choices[0].finish_reason, found.usage.prompt_tokens, found.usage.completion_tokens

    def streamed(question: str) -> tuple[str, str, int, int]:
        *chunks, last = list(talking.say(question, max_tokens=20, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        return text, chunks[-1].choices[0].finish_reason, last.usage.prompt_tokens, last.usage.completion_tokens

    with ThreadPoolExecutor(6) as clients:  # together, so that they decode together
        found = [clients.submit(ask, question) for question in questions for ask in (whole, streamed)]
        assert [one.result(timeout=60) for one in found] == [one for one in wanted for _ in range(2)]
    detail = talking.openai.models.retrieve("adviser@1")
    assert detail.model_dump()["system"] == "the study of"
    assert [model.id for model in talking.openai.models.list()] == ["adviser@1"]


def test_the_first_piece_comes_long_before_the_last(talking: Talking) -> None:
    start = time.monotonic()
    times = [time.monotonic() - start for chunk in talking.say("tumour", max_tokens=300, stream=True) if chunk.choices[0].delta.content]
    assert len(times) > 50
    assert times[0] < times[-1] / 3


def test_a_client_that_leaves_frees_its_row_streamed_and_not(talking: Talking) -> None:
    stream = talking.say("tumour", max_tokens=LONG, stream=True)
    next(iter(stream))
    assert talking.generating() == 1
    stream.close()
    talking.wait_until_generating(0)
    asking = talking.openai.with_options(timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        asking.chat.completions.create(model="adviser", messages=[{"role": "user", "content": "tumour"}], max_tokens=LONG)
    talking.wait_until_generating(0)


def test_a_full_queue_is_a_rate_limit_and_empties_again(talking: Talking) -> None:
    answers: list[Any] = []

    def ask() -> None:
        with contextlib.suppress(openai.APIConnectionError):
            try:
                answers.append(talking.say("tumour", max_tokens=LONG, stream=True))
            except openai.RateLimitError as err:
                answers.append(err)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(6)]
    for number, thread in enumerate(
        threads, 1
    ):  # Serve counts who is on the way to a replica as waiting: all at once, more would be refused
        thread.start()
        talking.wait_until_generating(min(number, 3))
    end = time.monotonic() + 10
    while len(answers) < 5:  # two are told, three are refused, one waits
        assert time.monotonic() < end
        time.sleep(0.05)
    refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
    assert len(refused) == 3
    assert all(err.response.headers["retry-after"] == "1" and err.code == "overloaded" for err in refused)
    for answer in answers:
        if not isinstance(answer, openai.RateLimitError):
            answer.close()
    for thread in threads:
        thread.join(timeout=30)
    for answer in answers:
        if not isinstance(answer, openai.RateLimitError):
            answer.close()
    talking.wait_until_generating(0)
    assert talking.say("tumour", max_tokens=2).usage.completion_tokens <= 2


def test_the_audit_line_has_tokens_and_times_and_no_log_has_a_text(talking: Talking) -> None:
    found = talking.say(f"tumour {MARKER}", max_tokens=3)
    with pytest.raises(openai.BadRequestError):
        talking.say(MARKER, n=2)
    end = time.monotonic() + 10
    while True:
        written = {path: path.read_text(errors="replace") for path in talking.logs.rglob("*") if path.is_file()}
        number = found.id.removeprefix("chatcmpl-")
        lines = [line for text in written.values() for line in text.splitlines() if number in line and '"outcome"' in line]
        if lines or time.monotonic() > end:
            break
        time.sleep(0.2)
    line = json.loads(lines[0][lines[0].index("{") :])
    assert line["release"] == "adviser@1"
    assert (line["status"], line["outcome"], line["completion_tokens"]) == (200, "answered", found.usage.completion_tokens)
    assert line["prompt_tokens"] == found.usage.prompt_tokens
    assert 0 < line["first_token_ms"] <= line["ms"]
    assert [str(path) for path, text in written.items() if MARKER in text] == []


@pytest.mark.chaos
@pytest.mark.slow
def test_a_replica_that_dies_in_the_middle_is_an_error_event_and_another_one_answers(talking: Talking) -> None:
    seen = 0
    with pytest.raises(openai.APIError, match="no replica"):
        for _ in talking.say("tumour", max_tokens=LONG, stream=True):
            seen += 1
            if seen == 5:
                (victim,) = [number for number, name in processes().items() if name.startswith("ray::ServeReplica:medray:adviser@1")]
                os.kill(victim, signal.SIGKILL)
    assert seen >= 5
    end = time.monotonic() + 60
    while True:
        try:
            assert talking.say("tumour", max_tokens=2).outcome == "answered"
            break
        except openai.InternalServerError:
            assert time.monotonic() < end
            time.sleep(0.5)
