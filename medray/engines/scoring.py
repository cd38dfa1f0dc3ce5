"""Log-likelihoods of continuations of prompts, by three exact methods: a block mask, a repeated
cache or whole rows.

Each takes token ids and returns a row per prompt with a column per continuation. They differ in the
work that they repeat."""

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
    """Return the fastest method that the model's attention supports."""
    config = model.config
    if "position_ids" not in inspect.signature(base_of(model).forward).parameters:
        return whole_rows
    # The mask is the same for all layers, and flash attention takes none.
    alike = len(set(getattr(config, "layer_types", None) or [None])) == 1
    return (
        block_mask
        if alike and config._attn_implementation in ("sdpa", "eager", ATTENTION)
        else repeated_cache
    )


def row_length(prompt: Ids, continuations: Sequence[Ids]) -> int:
    """Return the length of a prompt with all continuations. The last token of each is only
    predicted."""
    return len(prompt) + sum(len(ids) - 1 for ids in continuations)


def block_mask(
    model: Any, prompts: Sequence[Ids], continuations: Sequence[Ids], pad_id: int
) -> Tensor:
    """Put all continuations in the row of their prompt.

    Each attends to the prompt and to itself, with positions that follow the prompt's.
    """
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
    )  # padding attends to itself, since an empty row gives NaN
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
    inputs = {
        "input_ids": ids.to(model.device),
        "position_ids": positions.to(model.device),
        "attention_mask": _mask_for(model, mask[:, None]).to(model.device),
    }
    logits = logits_at(model, inputs, rows, places).view(len(prompts), 1 + num, -1)
    return _sums(logits[:, 0], logits[:, 1:], continuations)


def repeated_cache(
    model: Any, prompts: Sequence[Ids], continuations: Sequence[Ids], pad_id: int
) -> Tensor:
    """Read the prompt once, and copy its keys and values for every continuation."""
    return torch.cat([_after(model, prompt, continuations, pad_id) for prompt in prompts])


def _after(model: Any, prompt: Ids, continuations: Sequence[Ids], pad_id: int) -> Tensor:
    outputs = model(
        input_ids=torch.tensor([list(prompt)], device=model.device),
        use_cache=True,
        logits_to_keep=1,
    )
    tails = [list(ids[:-1]) for ids in continuations if len(ids) > 1]
    first = outputs.logits[:, -1]
    if not tails:
        return _sums(first, first[:, None][:, :0], continuations)
    cache = outputs.past_key_values
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
    """Read the prompt again before every continuation."""
    whole = [[*prompt, *ids[:-1]] for prompt in prompts for ids in continuations]
    counts = [len(ids) for _ in prompts for ids in continuations]
    inputs = {name: tensor.to(model.device) for name, tensor in collate(whole, pad_id).items()}
    lengths = [len(row) + 1 for row in whole]
    spans = [((length - count, length),) for length, count in zip(lengths, counts, strict=True)]
    rows, places = answer_places(lengths, spans, 0, left=False)
    targets = torch.tensor(
        [token for _ in prompts for ids in continuations for token in ids], device=model.device
    )
    token_scores = _log_likelihood(logits_at(model, inputs, rows, places), targets)
    sums = torch.zeros(len(whole), device=token_scores.device).index_add(
        0, torch.tensor(rows, device=token_scores.device), token_scores
    )
    return sums.view(len(prompts), len(continuations))


def _sums(first: Tensor, rest: Tensor, continuations: Sequence[Ids]) -> Tensor:
    """Sum the log-likelihoods per continuation. `first` predicts the first token of each, `rest`
    the other tokens in order."""
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


def _log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.float()
    return logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)


def _mask_for(model: Any, mask: Tensor) -> Tensor:
    """Return a mask in the form that the model's attention takes."""
    if model.config._attn_implementation != "eager":
        return mask
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
