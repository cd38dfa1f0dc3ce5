"""Rows that are generated together have the same texts as alone."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support import tiny

from medray.config.trial import LoraConfig, ModelOptions
from medray.engines.generation import Generation, RowCache, draw
from medray.engines.transformers import TransformersEngine
from medray.errors import ConfigError
from medray.models import sources
from medray.models.architecture import outline_of
from medray.models.build import BuiltModel, build
from medray.text.detokenize import TextStream
from medray.types import Chunk, Sampling, gather

PROMPTS = [[10, 11, 12], [20] * 17, [9, 1, 13, 1, 14], [15], [16, 17, 18, 19], [30, 31] * 6]
LENGTHS = [9, 5, 12, 20, 1, 7]


def make(folder: Path, family: str = "llama", **changes: Any) -> BuiltModel:
    source = str(tiny.base(folder, family, **changes))
    return build(sources.resolve(source, None), None, ModelOptions(), LoraConfig(), seed=1)


def alone(model: BuiltModel, prompt: list[int], num: int) -> str:
    """Generate with transformers' own loop."""
    model.network.eval()
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        tokens = model.network.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=1,
        )
    return model.tokenizer.decode(tokens[0, len(prompt) :], skip_special_tokens=True)


def texts(chunks: list[Chunk]) -> list[str]:
    return [chunk.text for chunk in gather(chunks, len(PROMPTS))]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *((family, {}) for family in tiny.DECODERS),
        ("mistral", {"sliding_window": 6}),
        ("llama", {"attn_implementation": "eager"}),
    ],
)
def test_rows_that_join_and_leave_at_any_time_say_what_generate_says_of_each_alone(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    model = make(tmp_path, family, **changes)
    references = [alone(model, prompt, num) for prompt, num in zip(PROMPTS, LENGTHS, strict=True)]
    generation = TransformersEngine(model, precision="fp32", token_budget=1).generation()
    rows = [
        generation.row(at, prompt, Sampling(max_tokens=LENGTHS[at]))
        for at, prompt in enumerate(PROMPTS)
    ]
    chunks, most = [], 0
    for at in range(0, len(rows), 2):  # two prompts at a time, while those before are under way
        chunks += generation.join(rows[at : at + 2])
        for _ in range(3):
            most = max(most, len(generation.rows))
            chunks += generation.step()
    while generation.rows:
        chunks += generation.step()
    assert texts(chunks) == references
    assert most >= 3
    assert len(set(references)) == len(references)


def test_a_row_that_is_dropped_frees_its_place_and_changes_no_other(tmp_path: Path) -> None:
    model = make(tmp_path)
    generation = TransformersEngine(model, precision="fp32", token_budget=1).generation()
    short, long, other = (
        generation.row(at, PROMPTS[at], Sampling(max_tokens=20)) for at in range(3)
    )
    chunks = generation.join([short, long, other])
    chunks += generation.step()
    generation.drop([long])
    assert generation.rows == [short, other]
    assert isinstance(generation.cache, RowCache)
    assert (
        generation.cache.get_seq_length() == other.length
    )  # nothing is kept for the longest row, which left
    while generation.rows:
        chunks += generation.step()
    row_texts = texts(chunks)
    assert row_texts[0] == alone(model, PROMPTS[0], 20)
    assert row_texts[2] == alone(model, PROMPTS[2], 20)
    assert generation.cache is None


@pytest.mark.document(
    "000",
    "long prompts do not run out of memory (paged attention)",
    where="`generation_tokens`",
    how="rows wait for room of keys and values; pages are vLLM's, where it is installed",
)
def test_the_budget_bounds_keys_and_values_and_one_row_always_goes(tmp_path: Path) -> None:
    model = make(tmp_path)
    generation = TransformersEngine(model, precision="fp32", token_budget=1).generation()
    rows = [
        generation.row(at, [5] * size, Sampling(max_tokens=10))
        for at, size in enumerate((10, 10, 30, 5))
    ]
    assert generation.admit(rows, 1) == rows[:1]
    assert generation.admit(rows, 59) == rows[:2]  # a third would make three rows of forty
    assert generation.admit(rows, 120) == rows[:3]
    generation.join(rows[2:3])
    assert generation.admit(rows[:2], 79) == []
    assert generation.admit(rows[:2], 80) == rows[:1]


def test_a_small_budget_changes_nothing_of_what_is_said(tmp_path: Path) -> None:
    model = make(tmp_path)
    references = [alone(model, prompt, 8) for prompt in PROMPTS]
    for budget in (1, 60, 1000):
        engine = TransformersEngine(model, precision="fp32", token_budget=budget)
        assert texts(list(engine.generate(PROMPTS, Sampling(max_tokens=8)))) == references


def test_text_comes_token_by_token_and_the_last_piece_says_why_it_ended(tmp_path: Path) -> None:
    engine = TransformersEngine(make(tmp_path), precision="fp32", token_budget=100)
    chunks = list(engine.generate([PROMPTS[0]], Sampling(max_tokens=6)))
    assert len(chunks) > 3
    assert [chunk.finish for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert sum(chunk.num_tokens for chunk in chunks) == 6


def sample(engine: TransformersEngine, prompts: list[list[int]], **settings: Any) -> list[str]:
    sampling = Sampling(max_tokens=12, temperature=1.0, **settings)
    return [chunk.text for chunk in gather(engine.generate(prompts, sampling), len(prompts))]


def test_a_seed_says_the_same_whatever_it_is_batched_with(tmp_path: Path) -> None:
    engine = TransformersEngine(make(tmp_path), precision="fp32", token_budget=1000)
    (one,) = sample(engine, PROMPTS[:1], seed=3)
    assert sample(engine, PROMPTS, seed=3)[0] == one
    assert sample(engine, PROMPTS[:1], seed=4) != [one]
    assert len({sample(engine, PROMPTS[:1])[0] for _ in range(4)}) > 1  # without a seed
    assert (
        len(set(sample(engine, PROMPTS[:1] * 4, seed=3))) > 1
    )  # each prompt draws its own numbers


def test_greedy_rows_beside_sampling_ones_and_ones_with_logprobs_say_the_same_as_alone(
    tmp_path: Path,
) -> None:
    engine = TransformersEngine(make(tmp_path), precision="fp32", token_budget=1000)
    settings = [
        Sampling(max_tokens=9),
        Sampling(max_tokens=9, temperature=1.0, seed=3),
        Sampling(max_tokens=9, logprobs=2),
    ]

    def run(numbers: list[int]) -> dict[int, list[Chunk]]:
        generation = engine.generation()
        rows = [generation.row(at, PROMPTS[at], settings[at]) for at in numbers]
        results = generation.join(rows)
        while generation.rows:
            results += generation.step()
        chunks = [result for result in results if isinstance(result, Chunk)]
        return {at: [chunk for chunk in chunks if chunk.index == at] for at in numbers}

    together = run([0, 1, 2])
    for at in range(3):
        texts_alone = [chunk.text for chunk in run([at])[at]]
        assert [chunk.text for chunk in together[at]] == texts_alone
        has_logprobs = all(chunk.logprobs for chunk in together[at])
        assert has_logprobs == (at == 2)


@pytest.mark.parametrize("family", ["llama", "phi", "phi3", "mistral", "opt", "gemma3_text"])
def test_keys_in_half_precision_take_no_more_memory_than_values(
    tmp_path: Path, family: str
) -> None:
    engine = TransformersEngine(make(tmp_path, family), precision="bf16", token_budget=1000)
    generation = engine.generation()
    generation.join([generation.row(0, PROMPTS[1], Sampling(max_tokens=8))])
    for _ in range(3):
        generation.step()
        assert isinstance(generation.cache, RowCache)
        for layer in generation.cache.layers:
            assert layer.keys.dtype == layer.values.dtype == torch.bfloat16


def test_top_p_takes_the_most_probable_tokens_alone(tmp_path: Path) -> None:
    model = make(tmp_path)
    engine = TransformersEngine(model, precision="fp32", token_budget=1000)
    assert sample(engine, PROMPTS[:1], top_p=1e-6) == [alone(model, PROMPTS[0], 12)]
    counts = dict.fromkeys(range(4), 0)
    generation = engine.generation()
    for seed in range(200):
        row = generation.row(0, [5], Sampling(max_tokens=1, temperature=1.0, top_p=0.6, seed=seed))
        assert row.numbers
        counts[draw(torch.tensor([0.5, 0.3, 0.15, 0.05]).log(), row.sampling, row.numbers)] += 1
    assert counts[2] == counts[3] == 0  # 0.5 and 0.3 hold more than 0.6
    assert counts[0] > counts[1] > 40


def test_logprobs_are_the_models_own_of_each_token_made(tmp_path: Path) -> None:
    model = make(tmp_path)
    (chunk,) = gather(
        TransformersEngine(model, precision="fp32", token_budget=1000).generate(
            PROMPTS[:1], Sampling(max_tokens=4, logprobs=3)
        ),
        1,
    )
    assert len(chunk.logprobs) == chunk.num_tokens == 4
    with torch.inference_mode():
        first = model.network(torch.tensor([PROMPTS[0]])).logits[0, -1].log_softmax(-1)
    values, ids = first.topk(3)
    assert [value for _, value in chunk.logprobs[0].top] == pytest.approx(values.tolist(), abs=1e-5)
    assert [text for text, _ in chunk.logprobs[0].top] == [
        model.tokenizer.decode([number]) for number in ids.tolist()
    ]
    assert chunk.logprobs[0].logprob == pytest.approx(float(values[0]), abs=1e-5)
    (plain,) = gather(
        TransformersEngine(model, precision="fp32", token_budget=1000).generate(
            PROMPTS[:1], Sampling(max_tokens=4)
        ),
        1,
    )
    assert (plain.text, plain.logprobs) == (chunk.text, ())


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return bytes(ids).decode(errors="replace")


def push_all(text: str, *stop: str) -> list[str]:
    """Return the text after each byte, and the rest."""
    reader, pieces = TextStream(Bytes(), stop), []
    for token in text.encode():
        pieces.append(reader.push(token))
        if reader.has_stopped:
            return pieces
    return [*pieces, reader.end()]


def test_no_piece_holds_half_a_character_and_none_is_lost() -> None:
    for text in ("naïve β-blocker 5 µg", "体温 38 °C 🌡️ ok", "plain"):
        pieces = push_all(text)
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)
    reader = TextStream(Bytes(), ())
    assert [reader.push(token) for token in "é".encode()[:1]] == [""]
    assert reader.end() == "\ufffd"  # cut by the length in the middle of a character


def test_what_may_become_a_stop_string_is_held_back_until_it_is_known() -> None:
    assert push_all("say END now", "END") == ["s", "a", "y", " ", "", "", ""]
    assert "".join(push_all("say EN", "END")) == "say EN"
    assert push_all("aab", "ab") == ["", "a", ""]
    assert "".join(push_all("one ENE END", "END")) == "one ENE "
    assert "".join(push_all("stop or halt", "halt", "or")) == "stop "
    rng = random.Random(0)
    for _ in range(300):
        text, stop = (
            "".join(rng.choice("ab") for _ in range(size)) for size in (20, rng.randint(1, 5))
        )
        assert "".join(push_all(text, stop)) == text.partition(stop)[0]


def test_a_stop_string_ends_a_row_and_its_tokens_are_counted(tmp_path: Path) -> None:
    model = make(tmp_path)
    engine = TransformersEngine(model, precision="fp32", token_budget=1000)
    (whole,) = gather(engine.generate(PROMPTS[:1], Sampling(max_tokens=8)), 1)
    word = whole.text.split()[3]
    (cut,) = gather(engine.generate(PROMPTS[:1], Sampling(max_tokens=8, stop=(word,))), 1)
    assert cut.text == whole.text[: whole.text.index(word)]
    assert (cut.finish, cut.num_tokens < 8) == ("stop", True)


def test_a_model_whose_states_no_cache_holds_is_refused_before_training(tmp_path: Path) -> None:
    config = transformers.RecurrentGemmaConfig(
        vocab_size=99, hidden_size=32, lru_width=32, intermediate_size=96, num_hidden_layers=3
    )
    with pytest.raises(ConfigError, match=r"base: model type 'recurrent_gemma' has layers whose"):
        outline_of(config, "base", "language model")
    network = make(tmp_path).network
    network.get_base_model()._is_stateful = True
    with pytest.raises(ConfigError, match="use another base model"):
        Generation(network, None, lambda: torch.inference_mode())
