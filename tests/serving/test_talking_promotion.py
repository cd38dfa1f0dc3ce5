"""The alias of a chat release moves while clients read streams: each stream is whole and comes
from one version."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from support import tiny
from support.serve_session import TOKEN, end_serve
from transformers import LlamaForCausalLM

import medray
from medray import cli
from medray.registry.registry import Registry
from medray.runtime.cluster import Cluster, free_port
from medray.serving import app, auth
from medray.serving.schemas import AppOptions
from medray.types import DISCLAIMER, Message, Sampling, gather

pytestmark = [pytest.mark.ray, pytest.mark.slow]
QUESTIONS = (
    "tumour cell",
    "renal failure study of a glucose",
    "fever",
    "blood pressure after therapy",
)
TOKENS, CLIENTS = 60, 6


@dataclass(frozen=True)
class Answer:
    question: str
    text: str
    finish: str | None
    releases: frozenset[tuple[str, int]]  # of its pieces
    start: float
    end: float


@dataclass(frozen=True)
class Adviser:
    url: str
    storage: Path

    def run(self, *arguments: str) -> int:
        return cli.main(
            [
                *arguments,
                "--url",
                self.url,
                "--token-file",
                str(self.storage / "token"),
                "--storage-path",
                str(self.storage),
            ]
        )

    def ask(self, question: str, *, stream: bool) -> Answer:
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=TOKEN, max_retries=0, timeout=60)
        start = time.monotonic()
        messages: Any = [{"role": "user", "content": question}]
        response: Any = client.chat.completions.create(
            model="adviser@best", messages=messages, max_tokens=TOKENS, stream=stream
        )
        chunks = list(response) if stream else [response]
        text = "".join(
            (piece.choices[0].delta if stream else piece.choices[0].message).content or ""
            for piece in chunks
        )
        releases = frozenset((piece.release, piece.version) for piece in chunks)
        return Answer(
            question, text, chunks[-1].choices[0].finish_reason, releases, start, time.monotonic()
        )


@pytest.fixture(scope="module")
def adviser(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adviser]:
    """Versions 1 and 2 of one base, of which `best` is 1, on two replicas."""
    place = tmp_path_factory.mktemp("promotion")
    base = tiny.base(place, "llama", max_position_embeddings=512)
    model = LlamaForCausalLM.from_pretrained(base)
    model.lm_head.weight.data[tiny.tokenizer("llama").eos_token_id] = (
        0  # no text ends early: streams are under way when the alias moves
    )
    model.save_pretrained(base)
    registry = Registry(str(place / "runs"))
    for seed, rate in enumerate(
        (0.02, 0.002)
    ):  # the second learns little, and says something else to every question
        (folder := place / str(seed)).mkdir()
        study = tiny.instruct_study(
            place,
            f"seed={seed}",
            f"train={{max_steps: 8, learning_rate: {rate}}}",
            "train.epochs=null",
        )
        registry.publish(tiny.trial(study, folder).run().checkpoint, "adviser")
    registry.point("adviser", "best", 1)
    (place / "runs" / "token").write_text(TOKEN + "\n")
    (place / "runs" / "tokens").write_text(auth.digest(TOKEN) + "\n")
    options = AppOptions.model_validate(
        {
            "releases": ["adviser@best"],
            "storage_path": str(place / "runs"),
            "engine": "transformers",
            "precision": "fp32",
            "tokens_file": str(place / "runs" / "tokens"),
            "audit_log": None,
            "replicas": 2,
            "follow_s": 0.3,
            "limits": {"timeout_s": 60},
        }
    )
    port = free_port()
    try:
        with app.serving(options, host="127.0.0.1", port=port):
            yield Adviser(f"http://127.0.0.1:{port}", place / "runs")
    finally:
        end_serve()


def reference_texts(adviser: Adviser) -> dict[int, dict[str, tuple[str, str | None]]]:
    texts_by_version: dict[int, dict[str, tuple[str, str | None]]] = {}
    for version in (1, 2):
        release = medray.load(f"adviser@{version}", storage_path=str(adviser.storage))
        prompts = [
            release.task.prompt([Message("user", question)], release.engine.tokenizer, TOKENS)
            for question in QUESTIONS
        ]  # type: ignore[attr-defined]
        texts = gather(
            release.engine.generate(prompts, Sampling(max_tokens=TOKENS)), len(QUESTIONS)
        )
        texts_by_version[version] = {
            question: (f"{one.text}\n\n{DISCLAIMER}", one.finish)
            for question, one in zip(QUESTIONS, texts, strict=True)
        }
    return texts_by_version


def test_a_promotion_under_streams_breaks_none_and_mixes_no_two_versions(adviser: Adviser) -> None:
    texts = reference_texts(adviser)
    assert all(texts[1][question] != texts[2][question] for question in QUESTIONS)
    stop = threading.Event()

    def listen(number: int) -> list[Answer]:
        answers = []
        while not stop.is_set():
            answers.append(
                adviser.ask(
                    QUESTIONS[(number + len(answers)) % len(QUESTIONS)], stream=number % 3 > 0
                )
            )
        return answers

    moves = []
    with ThreadPoolExecutor(CLIENTS) as pool:
        listening = [pool.submit(listen, number) for number in range(CLIENTS)]
        try:
            time.sleep(2)
            for arguments in (
                ("promote", "adviser@2", "best"),
                ("rollback", "adviser", "best"),
                ("promote", "adviser@2", "best"),
            ):
                start = time.monotonic()
                assert adviser.run(*arguments) == 0
                moves.append((start, time.monotonic()))
                time.sleep(1.5)
        finally:
            stop.set()
        answers = [
            answer for one in listening for answer in one.result(timeout=120)
        ]  # a request that failed raises here
    by_version = {
        version: [answer for answer in answers if answer.releases == {("adviser", version)}]
        for version in (1, 2)
    }
    print(
        f"{len(answers)} answers, by version "
        f"{ ({version: len(own) for version, own in by_version.items()}) }, moves {moves}"
    )
    assert len(by_version[1]) + len(by_version[2]) == len(answers)
    for version, own in by_version.items():
        assert own
        for answer in own:
            assert (answer.text, answer.finish) == texts[version][answer.question]
    under_way = [
        answer
        for answer in answers
        for start, end in moves
        if answer.start < end and answer.end > start
    ]
    assert len(under_way) >= CLIENTS
