"""Log-likelihoods of continuations of prompts, three ways: one row with a block mask, a repeated
cache, whole rows.

Each takes token ids and gives a row a prompt and a column a continuation. Each is exact; they
differ in what they compute twice."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from medray.engines.base import Ids
from medray.models.batch import ATTENTION, answer_places, collate, logits_at
from medray.models.libraries import base_of

Method = Callable[[Any, Sequence[Ids], Sequence[Ids], int], Tensor]


def method(model: Any) -> Method:
    """The cheapest that this model's attention can do."""
    config = model.config
    if "position_ids" not in inspect.signature(base_of(model).forward).parameters:
        return whole_rows
    # One mask serves all layers, and flash attention takes none.
    alike = len(set(getattr(config, "layer_types", None) or [None])) == 1
    return (
        block_mask
        if alike and config._attn_implementation in ("sdpa", "eager", ATTENTION)
        else repeated_cache
    )


def row_length(prompt: Ids, continuations: Sequence[Ids]) -> int:
    """Tokens of a prompt's row with all continuations behind it; the last token of each is only
    predicted."""
    return len(prompt) + sum(len(ids) - 1 for ids in continuations)


def block_mask(
    model: Any, prompts: Sequence[Ids], continuations: Sequence[Ids], pad_id: int
) -> Tensor:
    """All continuations in the row of their prompt: each sees the prompt and itself, and its
    positions go on from the prompt's end."""
    tails = [list(ids[:-1]) for ids in continuations]
    inside = torch.block_diag(
        *[torch.ones(len(tail), len(tail)).tril() for tail in tails if tail]
    ).bool()
    behind = torch.tensor([at for tail in tails for at in range(len(tail))], dtype=torch.long)
    flat = torch.tensor([token for tail in tails for token in tail], dtype=torch.long)
    num, longest = len(flat), max(map(len, prompts))
    ids = torch.full((len(prompts), longest + num), pad_id, dtype=torch.long)
    positions = torch.zeros_like(ids)
    mask = torch.eye(longest + num, dtype=torch.bool).repeat(
        len(prompts), 1, 1
    )  # padding sees itself: a row of nothing is NaN
    rows: list[int] = []
    places: list[int] = []
    for row, prompt in enumerate(prompts):
        start, end = len(prompt), len(prompt) + num
        ids[row, :start], ids[row, start:end] = torch.as_tensor(prompt), flat
        positions[row, :start], positions[row, start:end] = torch.arange(start), start + behind
        mask[row, :start, :start] = torch.ones(start, start, dtype=torch.bool).tril()
        if num:
            mask[row, start:end, :start] = True
            mask[row, start:end, start:end] = inside
        rows += [row] * (1 + num)
        places += range(start - 1, end)
    window = getattr(model.config, "sliding_window", None)
    if window:
        mask &= positions[:, :, None] - positions[:, None, :] < window
    moved = {
        "input_ids": ids.to(model.device),
        "position_ids": positions.to(model.device),
        "attention_mask": _for(model, mask[:, None]).to(model.device),
    }
    logits = logits_at(model, moved, rows, places).view(len(prompts), 1 + num, -1)
    return _sums(logits[:, 0], logits[:, 1:], continuations)


def repeated_cache(
    model: Any, prompts: Sequence[Ids], continuations: Sequence[Ids], pad_id: int
) -> Tensor:
    """The prompt once, its keys and values copied for every continuation."""
    return torch.cat([_after(model, prompt, continuations, pad_id) for prompt in prompts])


def _after(model: Any, prompt: Ids, continuations: Sequence[Ids], pad_id: int) -> Tensor:
    read = model(
        input_ids=torch.tensor([list(prompt)], device=model.device),
        use_cache=True,
        logits_to_keep=1,
    )
    tails = [list(ids[:-1]) for ids in continuations if len(ids) > 1]
    first = read.logits[:, -1]
    if not tails:
        return _sums(first, first[:, None][:, :0], continuations)
    cache = read.past_key_values
    cache.batch_repeat_interleave(len(tails))
    inputs = collate(tails, pad_id)
    before = torch.ones(len(tails), len(prompt), dtype=torch.long)
    logits = model(
        input_ids=inputs["input_ids"].to(model.device),
        attention_mask=torch.cat([before, inputs["attention_mask"]], dim=1).to(model.device),
        position_ids=(len(prompt) + torch.arange(inputs["input_ids"].shape[1]))
        .repeat(len(tails), 1)
        .to(model.device),
        past_key_values=cache,
    ).logits
    return _sums(
        first, logits[inputs["attention_mask"].bool().to(logits.device)][None], continuations
    )


def whole_rows(
    model: Any, prompts: Sequence[Ids], continuations: Sequence[Ids], pad_id: int
) -> Tensor:
    """The prompt again before every continuation."""
    whole = [[*prompt, *ids[:-1]] for prompt in prompts for ids in continuations]
    counts = [len(ids) for _ in prompts for ids in continuations]
    inputs = {name: tensor.to(model.device) for name, tensor in collate(whole, pad_id).items()}
    lengths = [len(row) + 1 for row in whole]
    spans = [((length - count, length),) for length, count in zip(lengths, counts, strict=True)]
    rows, places = answer_places(lengths, spans, 0, left=False)
    wanted = torch.tensor(
        [token for _ in prompts for ids in continuations for token in ids], device=model.device
    )
    found = _log_likelihood(logits_at(model, inputs, rows, places), wanted)
    sums = torch.zeros(len(whole), device=found.device).index_add(
        0, torch.tensor(rows, device=found.device), found
    )
    return sums.view(len(prompts), len(continuations))


def _sums(first: Tensor, rest: Tensor, continuations: Sequence[Ids]) -> Tensor:
    """`first` predicts the first token of each continuation, `rest` the others, one after
    another."""
    beginnings = torch.tensor([ids[0] for ids in continuations], device=first.device)
    scores = first.float().log_softmax(-1)[:, beginnings]
    others = torch.tensor(
        [token for ids in continuations for token in ids[1:]], dtype=torch.long, device=first.device
    )
    owners = torch.tensor(
        [at for at, ids in enumerate(continuations) for _ in ids[1:]],
        dtype=torch.long,
        device=first.device,
    )
    return scores.index_add(1, owners, _log_likelihood(rest, others.expand(rest.shape[:-1])))


def _log_likelihood(logits: Tensor, wanted: Tensor) -> Tensor:
    logits = logits.float()
    return logits.gather(-1, wanted[..., None])[..., 0] - logits.logsumexp(-1)


def _for(model: Any, allowed: Tensor) -> Tensor:
    """As the model's attention wants its mask."""
    if model.config._attn_implementation != "eager":
        return allowed
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
