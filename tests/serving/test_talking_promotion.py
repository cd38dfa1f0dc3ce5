"""An alias of a release that talks moves while clients are told streams: each is whole, and all of
one version."""

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
class Told:
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

    def ask(self, question: str, *, stream: bool) -> Told:
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=TOKEN, max_retries=0, timeout=60)
        start = time.monotonic()
        messages: Any = [{"role": "user", "content": question}]
        found: Any = client.chat.completions.create(
            model="adviser@best", messages=messages, max_tokens=TOKENS, stream=stream
        )
        chunks = list(found) if stream else [found]
        text = "".join(
            (piece.choices[0].delta if stream else piece.choices[0].message).content or ""
            for piece in chunks
        )
        releases = frozenset((piece.release, piece.version) for piece in chunks)
        return Told(
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


def expected(adviser: Adviser) -> dict[int, dict[str, tuple[str, str | None]]]:
    found: dict[int, dict[str, tuple[str, str | None]]] = {}
    for version in (1, 2):
        loaded = medray.load(f"adviser@{version}", storage_path=str(adviser.storage))
        prompts = [
            loaded.task.prompt([Message("user", question)], loaded.engine.tokenizer, TOKENS)
            for question in QUESTIONS
        ]  # type: ignore[attr-defined]
        texts = gather(loaded.engine.generate(prompts, Sampling(max_tokens=TOKENS)), len(QUESTIONS))
        found[version] = {
            question: (f"{one.text}\n\n{DISCLAIMER}", one.finish)
            for question, one in zip(QUESTIONS, texts, strict=True)
        }
    return found


def test_a_promotion_under_streams_breaks_none_and_mixes_no_two_versions(adviser: Adviser) -> None:
    wanted = expected(adviser)
    assert all(wanted[1][question] != wanted[2][question] for question in QUESTIONS)
    stop = threading.Event()

    def listen(number: int) -> list[Told]:
        heard = []
        while not stop.is_set():
            heard.append(
                adviser.ask(
                    QUESTIONS[(number + len(heard)) % len(QUESTIONS)], stream=number % 3 > 0
                )
            )
        return heard

    moved = []
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
                moved.append((start, time.monotonic()))
                time.sleep(1.5)
        finally:
            stop.set()
        heard = [
            told for one in listening for told in one.result(timeout=120)
        ]  # a request that failed raises here
    by_version = {
        version: [told for told in heard if told.releases == {("adviser", version)}]
        for version in (1, 2)
    }
    print(
        f"{len(heard)} answers, by version "
        f"{ ({version: len(found) for version, found in by_version.items()}) }, moves {moved}"
    )
    assert len(by_version[1]) + len(by_version[2]) == len(heard)
    for version, found in by_version.items():
        assert found
        for told in found:
            assert (told.text, told.finish) == wanted[version][told.question]
    under_way = [
        told for told in heard for start, end in moved if told.start < end and told.end > start
    ]
    assert len(under_way) >= CLIENTS
