"""Scores of branches: questions after a prompt, each with its options. No branch sees another, and
a prompt is read once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from engines.test_scoring import make, plainly, prompts
from support import tiny

from medray.engines import scoring
from medray.engines.base import tree_length
from medray.engines.transformers import TransformersEngine
from medray.errors import DataError
from medray.models.build import BuiltModel
from medray.types import Branch

QUESTIONS = (
    Branch((30, 31, 32), ((40,), (41, 42), (41, 42, 1))),
    Branch((33,), ((50, 51), (60,))),
    Branch((), ((40, 1), (70,))),
)


def branches_of(num: int) -> list[tuple[Branch, ...]]:
    """Return other questions for each prompt."""
    return [QUESTIONS[: number % 3 + 1] for number in range(num)]


def engine_of(model: BuiltModel, token_budget: int = 300) -> TransformersEngine:
    return TransformersEngine(model, precision="fp32", token_budget=token_budget)


def references(model: BuiltModel) -> list[list[list[float]]]:
    return [
        [
            [plainly(model, [*prompt, *branch.tokens], list(ids)) for ids in branch.continuations]
            for branch in own
        ]
        for prompt, own in zip(prompts(), branches_of(7), strict=True)
    ]


def largest_difference(one: list, two: list) -> float:  # type: ignore[type-arg]
    return max(
        float(np.abs(np.array(a) - np.array(b)).max())
        for first, second in zip(one, two, strict=True)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("family", tiny.DECODERS)
def test_a_score_is_the_log_likelihood_after_prompt_and_branch(tmp_path: Path, family: str) -> None:
    model = make(tmp_path, family)
    scores = engine_of(model).score_branches(prompts(), branches_of(7))
    assert largest_difference(scores, references(model)) < 4e-5


def test_a_model_without_a_block_mask_and_one_with_a_window_give_the_same_scores(
    tmp_path: Path,
) -> None:
    model = make(tmp_path, "mistral", sliding_window=6)
    scores = engine_of(model).score_branches(prompts(), branches_of(7))
    assert largest_difference(scores, references(model)) < 4e-5
    model = make(tmp_path, "llama")
    expectation = references(model)
    model.network.config._attn_implementation = "flash_attention_2"
    assert scoring.method(model.network) is not scoring.block_mask
    model.network.config._attn_implementation = "sdpa"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "method", lambda network: scoring.repeated_cache)
        scores = engine_of(model).score_branches(prompts(), branches_of(7))
    assert largest_difference(scores, expectation) < 4e-5


def test_neither_batch_nor_other_branches_nor_their_order_change_a_score(tmp_path: Path) -> None:
    model, many = make(tmp_path, "llama"), prompts(12)
    scores = engine_of(model).score_branches(many, [QUESTIONS] * 12)
    alone = [
        [engine_of(model, 1).score_branches([prompt], [[branch]])[0][0] for branch in QUESTIONS]
        for prompt in many
    ]
    assert largest_difference(scores, alone) < 1e-5
    backwards = [
        Branch(branch.tokens, branch.continuations[::-1]) for branch in reversed(QUESTIONS)
    ]
    other_order = engine_of(model).score_branches(many, [backwards] * 12)
    again = [[values[::-1] for values in reversed(own)] for own in other_order]
    assert largest_difference(scores, again) < 1e-5


def test_a_prompt_is_read_once_for_all_its_questions(tmp_path: Path) -> None:
    model = make(tmp_path, "llama")
    num_tokens: list[int] = []
    model.network.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: num_tokens.append(args[0].numel())
    )
    prompt = list(range(2, 60))
    engine_of(model).score_branches([prompt], [QUESTIONS])
    # Of each continuation, the last token is only predicted.
    assert num_tokens == [len(prompt) + (3 + 0 + 1 + 2) + (1 + 1 + 0) + (0 + 1 + 0)]
    assert num_tokens == [tree_length(prompt, QUESTIONS)]


def test_gradients_are_those_of_whole_rows(tmp_path: Path) -> None:
    model = make(tmp_path, "llama")
    model.network.eval()  # without dropout
    gradients = []
    for method in (scoring.block_mask, scoring.whole_rows):
        model.network.zero_grad()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scoring, "method", lambda network, method=method: method)
            scores = scoring.branch_scores(model.network, prompts(), branches_of(7), 1)
        sum(values.log_softmax(0)[0] for own in scores for values in own).backward()  # type: ignore[union-attr]
        gradients.append(
            torch.cat(
                [
                    parameter.grad.flatten()
                    for parameter in model.network.parameters()
                    if parameter.grad is not None
                ]
            )
        )
    assert gradients[0].abs().max() > 0
    assert torch.allclose(*gradients, atol=1e-4, rtol=1e-3)


def test_a_branch_without_continuations_is_refused(tmp_path: Path) -> None:
    engine = engine_of(make(tmp_path, "llama"))
    with pytest.raises(DataError, match="has no tokens; give at least one word"):
        engine.score_branches([[5]], [[Branch((6,), ())]])
    assert engine.score_branches([], []) == []
