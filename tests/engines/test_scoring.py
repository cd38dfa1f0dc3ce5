"""Scores of continuations: their values, the agreement of all methods, and the tokens that each
method reads."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny

from medray.config.trial import LoraConfig, ModelOptions
from medray.engines import scoring
from medray.engines.transformers import TransformersEngine
from medray.errors import DataError
from medray.models import sources
from medray.models.build import BuiltModel, build

# One token, several, one that begins another, and one with the end of sequence behind it.
CONTINUATIONS = [[40], [41, 42], [41, 42, 43, 44], [41, 42, 1], [50, 51, 52], [60]]
METHODS = [scoring.block_mask, scoring.repeated_cache, scoring.whole_rows]
# Layers with windows beside layers without have no common mask. Others store more than keys.
FASTEST = {
    **dict.fromkeys(tiny.DECODERS, scoring.block_mask),
    **dict.fromkeys(("gemma2", "gemma3_text", "gemma4_text"), scoring.repeated_cache),
    "qwen3_5_text": scoring.whole_rows,
}


def make(folder: Path, family: str, **changes: object) -> BuiltModel:
    """Build a model whose adapter changes its outputs."""
    model = build(
        sources.resolve(str(tiny.base(folder, family, **changes))),
        None,
        ModelOptions(),
        LoraConfig(),
        seed=1,
    )
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return model


def prompts(num: int = 7, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(2, 90) for _ in range(rng.randint(1, 30))] for _ in range(num)]


def plainly(model: BuiltModel, prompt: list[int], continuation: list[int]) -> float:
    """Score one continuation by one plain forward pass."""
    model.network.eval()
    with torch.inference_mode():
        ids = torch.tensor([prompt + continuation])
        logprobs = model.network(ids, use_cache=False).logits[0].log_softmax(-1)
    return sum(
        float(logprobs[len(prompt) + at - 1, token]) for at, token in enumerate(continuation)
    )


@pytest.mark.parametrize(
    ("family", "method"),
    [
        pytest.param(family, method, id=f"{family}-{method.__name__}")
        for family, fastest in FASTEST.items()
        for method in METHODS[METHODS.index(fastest) :]
    ],
)
def test_a_score_is_the_log_likelihood_of_the_continuation(
    tmp_path: Path, family: str, method: scoring.Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(tmp_path, family)
    monkeypatch.setattr(scoring, "method", lambda model: method)
    engine = TransformersEngine(model, precision="fp32", token_budget=200)
    scores = engine.score(prompts(), CONTINUATIONS)
    references = [[plainly(model, prompt, ids) for ids in CONTINUATIONS] for prompt in prompts()]
    assert np.abs(scores - np.array(references)).max() < 4e-5


@pytest.mark.parametrize("family", tiny.DECODERS)
def test_every_decoder_of_the_table_takes_its_fastest_method(tmp_path: Path, family: str) -> None:
    assert scoring.method(make(tmp_path, family).network) is FASTEST[family]


def test_layers_that_store_more_than_keys_and_values_read_whole_rows(tmp_path: Path) -> None:
    model = make(tmp_path, "qwen3_5_text", layer_types=["linear_attention"] * 2)
    engine = TransformersEngine(model, precision="fp32", token_budget=200)
    references = [[plainly(model, prompt, ids) for ids in CONTINUATIONS] for prompt in prompts()]
    assert np.abs(engine.score(prompts(), CONTINUATIONS) - np.array(references)).max() < 4e-5
    for kind in ("chunked_attention", "conv", "hybrid"):
        other = make(tmp_path, "llama")
        other.network.config.layer_types = [kind] * 2
        other.network.config.attention_chunk_size = 8
        assert scoring.method(other.network) is scoring.whole_rows


def test_a_window_that_no_layer_has_cuts_nothing(tmp_path: Path) -> None:
    options = {"layer_types": ["full_attention"] * 2, "use_sliding_window": True}
    model = make(tmp_path, "qwen2", sliding_window=6, **options)
    assert scoring.method(model.network) is scoring.block_mask
    scores = TransformersEngine(model, precision="fp32", token_budget=200).score(
        prompts(), CONTINUATIONS
    )
    references = [[plainly(model, prompt, ids) for ids in CONTINUATIONS] for prompt in prompts()]
    assert np.abs(scores - np.array(references)).max() < 4e-5


def test_flash_attention_gets_a_repeated_cache_and_eager_attention_a_mask_of_numbers(
    tmp_path: Path,
) -> None:
    model = make(tmp_path, "llama")
    engine = TransformersEngine(model, precision="fp32", token_budget=200)
    references = engine.score(prompts(), CONTINUATIONS)
    model.network.config._attn_implementation = "eager"
    assert np.abs(engine.score(prompts(), CONTINUATIONS) - references).max() < 4e-5
    model.network.config._attn_implementation = "flash_attention_2"
    assert scoring.method(model.network) is scoring.repeated_cache


def test_a_sliding_window_is_kept_inside_the_block_mask(tmp_path: Path) -> None:
    model = make(tmp_path, "mistral", sliding_window=6)
    scores = TransformersEngine(model, precision="fp32", token_budget=200).score(
        prompts(), CONTINUATIONS
    )
    references = [[plainly(model, prompt, ids) for ids in CONTINUATIONS] for prompt in prompts()]
    assert np.abs(scores - np.array(references)).max() < 4e-5


def test_neither_batch_nor_neighbours_nor_other_continuations_change_a_score(
    tmp_path: Path,
) -> None:
    model = make(tmp_path, "llama")
    many_prompts = prompts(20)
    alone = np.concatenate(
        [
            TransformersEngine(model, precision="fp32", token_budget=1).score(
                [prompt], CONTINUATIONS
            )
            for prompt in many_prompts
        ]
    )
    for budget in (1, 64, 300, 5000):
        scores = TransformersEngine(model, precision="fp32", token_budget=budget).score(
            many_prompts, CONTINUATIONS
        )
        assert np.abs(scores - alone).max() < 4e-5
        assert (scores.argmax(1) == alone.argmax(1)).all()
    few = TransformersEngine(model, precision="fp32", token_budget=300).score(
        many_prompts, CONTINUATIONS[2:4]
    )
    assert np.abs(few - alone[:, 2:4]).max() < 4e-5


def test_tokens_through_the_model_are_at_most_the_prompt_and_all_labels(tmp_path: Path) -> None:
    model = make(tmp_path, "llama")
    num_tokens: list[int] = []
    num_logits: list[int] = []
    model.network.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: num_tokens.append(args[0].numel())
    )
    model.network.get_output_embeddings().register_forward_hook(
        lambda module, args, logits: num_logits.append(logits.shape[:-1].numel())
    )
    labels = [[number % 90 + 2, number % 80 + 3, 5][: number % 3 + 1] for number in range(41)]
    prompt = list(range(2, 35))
    TransformersEngine(model, precision="fp32", token_budget=4096).score([prompt], labels)
    assert len(num_tokens) == 1
    assert num_tokens[0] <= len(prompt) + sum(map(len, labels))
    assert num_logits == [
        1 + sum(len(label) - 1 for label in labels)
    ]  # of the prompt its last token alone is scored


def test_bf16_agrees_where_the_first_two_are_apart(tmp_path: Path) -> None:
    model = make(tmp_path, "llama")
    many_prompts = prompts(200)
    exact, fast = (
        TransformersEngine(model, precision=precision, token_budget=2000).score(
            many_prompts, CONTINUATIONS
        )
        for precision in ("fp32", "bf16")
    )
    differ = exact.argmax(1) != fast.argmax(1)
    assert np.abs(exact - fast).max() > 0
    assert differ.mean() <= 0.01
    first_two = np.sort(exact, axis=1)[:, -2:]
    assert (np.diff(first_two, axis=1)[differ] < 0.5).all()


def test_a_prompt_or_continuation_without_tokens_is_refused(tmp_path: Path) -> None:
    engine = TransformersEngine(make(tmp_path, "llama"), precision="fp32", token_budget=100)
    for arguments in [([[]], [[5]]), ([[5]], [[]]), ([[5]], [])]:
        with pytest.raises(DataError, match="has no tokens; give at least one word"):
            engine.score(*arguments)
    assert engine.score([], [[5]]).shape == (0, 1)
