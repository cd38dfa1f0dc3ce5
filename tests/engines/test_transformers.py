import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny

from medray.config.trial import LoraConfig, ModelOptions
from medray.engines import transformers
from medray.engines.transformers import States, TransformersEngine
from medray.errors import ConfigError, DataError
from medray.evaluation.novelty import Cloud
from medray.models import sources
from medray.models.build import BuiltModel, build
from medray.models.families import ENCODERS
from medray.types import Chunk, Head, Sampling, gather

HEAD = Head(("a", "b"))


def generate_one(engine: TransformersEngine, prompt: str | list[int], **sampling: Any) -> Chunk:
    (whole,) = gather(engine.generate([prompt], Sampling(**sampling)), 1)  # type: ignore[list-item]
    return whole


def make(folder: Path, family: str, head: Head | None = HEAD) -> BuiltModel:
    return build(
        sources.resolve(str(tiny.base(folder, family))), head, ModelOptions(), LoraConfig(), seed=1
    )


@pytest.mark.parametrize("family", [*ENCODERS, *tiny.WITH_HEADS])
def test_a_row_gets_the_same_logits_alone_and_in_any_batch(tmp_path: Path, family: str) -> None:
    model = make(tmp_path, family)
    pad = model.tokenizer.pad_token_id
    rows = [[10, 11, 12], [20] * 30, [9, pad, 13, pad, 14], [15], [16, 17, 18, 19]]
    alone = np.concatenate(
        [
            TransformersEngine(model, precision="fp32", token_budget=1000).logits([row])
            for row in rows
        ]
    )
    for budget in (1, 12, 64, 1000):
        assert (
            np.abs(
                TransformersEngine(model, precision="fp32", token_budget=budget).logits(rows)
                - alone
            ).max()
            < 1e-5
        )


@pytest.mark.parametrize("family", [*ENCODERS, *tiny.WITH_HEADS])
def test_embeddings_come_with_the_logits_and_are_a_rows_own_in_any_batch(
    tmp_path: Path, family: str
) -> None:
    model = make(tmp_path, family)
    pad = model.tokenizer.pad_token_id
    rows = [[10, 11, 12], [20] * 30, [9, pad, 13, pad, 14], [15]]
    engine = TransformersEngine(model, precision="fp32", token_budget=1000)
    outputs = engine.logits_and_embeddings(rows)
    assert outputs.shape == (4, 2 + 32)
    assert np.abs(outputs[:, :2] - engine.logits(rows)).max() < 1e-5
    assert (
        np.abs(
            outputs - np.concatenate([engine.logits_and_embeddings([row]) for row in rows])
        ).max()
        < 1e-4
    )
    model.network.eval()
    with torch.inference_mode():
        states = model.network(
            input_ids=torch.tensor([rows[0]]), output_hidden_states=True
        ).hidden_states
    assert (
        np.abs(outputs[0, 2:] - states[1][0].mean(0).numpy()).max() < 1e-4
    )  # of two layers the first
    # their last layer is the last state; the others normalize after it
    if family in ENCODERS and family != "modernbert":
        assert np.abs(engine.mean_states(rows)[0] - states[2][0].mean(0).numpy()).max() < 1e-4


def test_an_engine_that_keeps_embeddings_answers_as_one_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sample_embeddings = make(tmp_path, "bert"), list[np.ndarray]()
    rows = [[10, 11, 12], [20] * 30, [15]]
    plain = TransformersEngine(model, precision="fp32", token_budget=1000)
    keeping = TransformersEngine(
        model, precision="fp32", token_budget=1000, embeddings=sample_embeddings
    )
    assert np.abs(keeping.logits(rows) - plain.logits(rows)).max() < 1e-5
    assert (
        np.abs(np.stack(sample_embeddings) - plain.logits_and_embeddings(rows)[:, 2:]).max() < 1e-5
    )
    few = list[np.ndarray]()
    with monkeypatch.context() as patch:
        patch.setattr(transformers, "MOST_EMBEDDINGS", 2)
        TransformersEngine(model, precision="fp32", token_budget=32, embeddings=few).logits(rows)
    assert np.abs(np.stack(few) - np.stack(sample_embeddings)[[0, 2]]).max() < 1e-5
    assert (
        not model.network.get_base_model().bert.encoder.layer[0]._forward_hooks
    )  # it looks no longer than a call


def test_generation_reads_token_ids_as_they_are(tmp_path: Path) -> None:
    engine = TransformersEngine(
        make(tmp_path, "llama", head=None), precision="fp32", token_budget=100
    )
    ids = engine.tokenizer("tumour in the lung")["input_ids"]
    texts = [
        generate_one(engine, prompt, max_tokens=5).text
        for prompt in ("tumour in the lung", ids, ids[::-1])
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_padding_is_known_by_length_so_a_row_may_hold_the_pad_token(
    tmp_path: Path, family: str
) -> None:
    model = make(tmp_path, family)
    pad = model.tokenizer.pad_token_id
    rows = [[10, 11, 12], [9, pad, 13, pad, 14], [20] * 9]
    outputs = TransformersEngine(model, precision="fp32", token_budget=1000).logits(rows)
    model.network.eval()
    with torch.inference_mode():
        whole = [
            model.network(
                input_ids=torch.tensor([row]),
                attention_mask=torch.ones(1, len(row), dtype=torch.long),
            )
            for row in rows
        ]
    assert np.abs(outputs - np.concatenate([one.logits.numpy() for one in whole])).max() < 1e-5


def test_no_inputs_give_no_rows_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    engine = TransformersEngine(make(tmp_path, "bert"), precision="fp32", token_budget=100)
    assert engine.logits([]).shape == (0, 2)
    with pytest.raises(DataError, match="1 of 2 inputs have no tokens"):
        engine.logits([[5, 6], []])


def test_the_models_mode_is_left_as_it_was(tmp_path: Path) -> None:
    model = make(tmp_path, "bert")
    for training in (True, False):
        model.network.train(training)
        TransformersEngine(model, precision="fp32", token_budget=100).logits([[5, 6]])
        assert model.network.training is training
    model.network.train()
    with pytest.raises(IndexError):
        TransformersEngine(model, precision="fp32", token_budget=100).logits([[10**6]])
    assert model.network.training


def test_bf16_stays_near_fp32(tmp_path: Path) -> None:
    model = make(tmp_path, "bert")
    rows = [[number, number + 1, 7] for number in range(5, 25)]
    exact, fast = (
        TransformersEngine(model, precision=precision, token_budget=100).logits(rows)
        for precision in ("fp32", "bf16")
    )
    assert 0 < np.abs(exact - fast).max() < 0.1


def test_greedy_generation_is_the_most_probable_next_token_and_stops_where_asked(
    tmp_path: Path,
) -> None:
    model = make(tmp_path, "llama", head=None)
    engine = TransformersEngine(model, precision="fp32", token_budget=100)
    chunk = generate_one(engine, "tumour in the lung", max_tokens=5)
    ids = model.tokenizer("tumour in the lung")["input_ids"]
    with torch.inference_mode():
        for _ in range(5):
            ids.append(int(model.network(torch.tensor([ids])).logits[0, -1].argmax()))
    assert chunk.text == model.tokenizer.decode(ids[4:], skip_special_tokens=True)
    word = chunk.text.split()[1]
    cut = generate_one(engine, "tumour in the lung", max_tokens=5, stop=(word,))
    assert cut.text == chunk.text[: chunk.text.index(word)]
    assert cut.finish == "stop"
    samples = [
        generate_one(engine, "tumour", max_tokens=8, temperature=1.0, seed=seed).text
        for seed in (1, 1, 2)
    ]
    assert samples[0] == samples[1] != samples[2]


def test_generation_in_batches_is_what_each_prompt_gives_alone(tmp_path: Path) -> None:
    model = make(tmp_path, "llama", head=None)
    rng = random.Random(0)
    prompts = [tiny.text(rng, num_words) for num_words in (1, 9, 2, 5, 3, 7, 2, 4)]
    alone = [
        generate_one(
            TransformersEngine(model, precision="fp32", token_budget=1), prompt, max_tokens=6
        )
        for prompt in prompts
    ]
    together = TransformersEngine(model, precision="fp32", token_budget=1000).generate(
        prompts, Sampling(max_tokens=6)
    )
    texts = [(chunk.text, chunk.finish) for chunk in gather(together, len(prompts))]
    assert texts == [(chunk.text, chunk.finish) for chunk in alone]


def test_generation_takes_no_setting_from_the_base_and_no_random_number_from_the_caller(
    tmp_path: Path,
) -> None:
    model = make(tmp_path, "llama", head=None)
    engine = TransformersEngine(model, precision="fp32", token_budget=1000)

    def sample() -> str:
        return generate_one(
            engine, "tumour in the lung", max_tokens=12, temperature=1.0, seed=1
        ).text

    before, state = sample(), torch.get_rng_state()
    model.network.generation_config.top_k = 1
    model.network.generation_config.repetition_penalty = 5.0
    assert sample() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_text_that_ends_itself_says_stop(tmp_path: Path) -> None:
    model = make(tmp_path, "llama", head=None)
    engine = TransformersEngine(model, precision="fp32", token_budget=100)
    chunk = generate_one(engine, "tumour", max_tokens=5)
    assert chunk.finish == "length"
    third = model.tokenizer(chunk.text)["input_ids"][2]
    model.network.generation_config.eos_token_id = [model.tokenizer.eos_token_id, third]
    shorter = generate_one(engine, "tumour", max_tokens=5)
    assert shorter.finish == "stop"
    assert chunk.text.startswith(shorter.text)
    assert len(shorter.text) < len(chunk.text)


def test_an_engine_refuses_what_its_model_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="built with a head"):
        TransformersEngine(make(tmp_path, "llama"), precision="fp32", token_budget=10).score(
            [[5]], [[6]]
        )
    with pytest.raises(ConfigError, match="as a language model, without a head"):
        TransformersEngine(
            make(tmp_path, "llama", head=None), precision="fp32", token_budget=10
        ).logits([[5]])


def test_states_laid_out_otherwise_make_no_embeddings_and_no_cloud() -> None:
    states, means = States(), []
    for output in (
        None,
        torch.ones(5, 2, 8),
        torch.ones(2, 8),
        torch.ones(2, 5, 8),
    ):  # none, XLNet's layout, one a row, as wanted
        if output is not None:
            states.store(None, (), (output,))
        means += list(states.means([5, 3]))
    assert [row.shape for row in means] == [(0,)] * 6 + [(8,)] * 2
    assert Cloud.fit(means * 10) is None
    assert states.means([5, 3]).shape == (2, 0)  # it was taken
