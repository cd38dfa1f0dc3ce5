"""Log-likelihoods of continuations of prompts, by three exact methods: a block mask, a repeated
cache or whole rows.

Each takes token ids and returns a row per prompt with a column per continuation. They differ in the
work that they repeat."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from medray.engines.base import Ids
from medray.models.architecture import has_only_attention, layer_kinds
from medray.models.batch import ATTENTION, answer_places, collate, logits_at
from medray.models.libraries import base_of
from medray.types import Branch

_PADDING = -2  # in the numbers of branches and continuations

Method = Callable[[Any, Sequence[Ids], Sequence[Ids], int], Tensor]


def method(model: Any) -> Method:
    """Return the fastest method that the model's layers support."""
    network = base_of(model)
    takes_positions = "position_ids" in inspect.signature(network.forward).parameters
    if not takes_positions or not has_only_attention(network):
        return whole_rows
    # The mask is the same for all layers, and flash attention takes none.
    takes_mask = model.config._attn_implementation in ("sdpa", "eager", ATTENTION)
    return block_mask if takes_mask and len(layer_kinds(network)) == 1 else repeated_cache


def block_mask(
    model: Any, prompts: Sequence[Ids], continuations: Sequence[Ids], pad_id: int
) -> Tensor:
    """Put all continuations in the row of their prompt.

    Each attends to the prompt and to itself, with positions that follow the prompt's.
    """
    branch = Branch((), tuple(map(tuple, continuations)))
    scores = _trees(model, prompts, [[branch]] * len(prompts), pad_id)
    return scores.view(len(prompts), len(continuations))


def branch_scores(
    model: Any, prompts: Sequence[Ids], branches: Sequence[Sequence[Branch]], pad_id: int
) -> list[list[Tensor]]:
    """Return the scores of the continuations of each branch of each prompt, with gradients where
    they are enabled. Where the attention allows it, a prompt is read once."""
    if method(model) is block_mask:
        flat = _trees(model, prompts, branches, pad_id)
    else:
        flat = torch.cat(
            [
                whole_rows(model, [[*prompt, *branch.tokens]], branch.continuations, pad_id)[0]
                for prompt, own in zip(prompts, branches, strict=True)
                for branch in own
            ]
        )
    return _by_branch(flat, branches)


def head_scores(
    model: Any, prompts: Sequence[Ids], branches: Sequence[Sequence[Branch]], pad_id: int
) -> list[list[Tensor]]:
    """Return the scores of a head with one output, which reads each prompt, branch and continuation
    as a row of its own."""
    rows = [
        [*prompt, *branch.tokens, *ids]
        for prompt, own in zip(prompts, branches, strict=True)
        for branch in own
        for ids in branch.continuations
    ]
    inputs = {name: tensor.to(model.device) for name, tensor in collate(rows, pad_id).items()}
    return _by_branch(model(**inputs).logits[:, 0], branches)


def _by_branch(flat: Tensor, branches: Sequence[Sequence[Branch]]) -> list[list[Tensor]]:
    scores = iter(flat.split([len(branch.continuations) for own in branches for branch in own]))
    return [[next(scores) for _ in own] for own in branches]


@dataclass
class _Tree:
    """A row of tokens: a prompt, its branches, and the continuations of each. A token attends to
    the tokens before it on its own path."""

    tokens: list[int]
    positions: list[int]
    branches: list[int]  # per token, the number of its branch; -1 in the prompt
    leaves: list[int]  # per token, the number of its continuation in the row; -1 outside
    # Per token to score: the place that predicts it, and the number of its continuation.
    places: list[int]
    targets: list[int]
    owners: list[int]
    num_leaves: int = 0

    @classmethod
    def of(cls, prompt: Ids, branches: Sequence[Branch]) -> Self:
        tree = cls([], [], [], [], [], [], [])
        tree._add(prompt, 0, -1, -1)
        for number, branch in enumerate(branches):
            tree._add(branch.tokens, len(prompt), number, -1)
            parent, depth = len(tree.tokens) - 1, len(prompt) + len(branch.tokens)
            if not branch.tokens:
                parent = len(prompt) - 1
            for ids in branch.continuations:
                first = len(tree.tokens)
                tree._add(ids[:-1], depth, number, tree.num_leaves)
                tree.places += [parent, *range(first, len(tree.tokens))]
                tree.targets += ids
                tree.owners += [tree.num_leaves] * len(ids)
                tree.num_leaves += 1
        return tree

    def _add(self, ids: Ids, depth: int, branch: int, leaf: int) -> None:
        self.tokens += ids
        self.positions += range(depth, depth + len(ids))
        self.branches += [branch] * len(ids)
        self.leaves += [leaf] * len(ids)


def _trees(
    model: Any, prompts: Sequence[Ids], branches: Sequence[Sequence[Branch]], pad_id: int
) -> Tensor:
    """Return the scores of all continuations of all rows, one after the other."""
    trees = [_Tree.of(prompt, own) for prompt, own in zip(prompts, branches, strict=True)]
    positions, branch, leaf = (
        _pad([getattr(tree, name) for tree in trees], padding)
        for name, padding in (("positions", 0), ("branches", _PADDING), ("leaves", _PADDING))
    )
    mask = positions[:, None, :] <= positions[:, :, None]
    for path in (branch, leaf):  # padding attends to padding, since an empty row gives NaN
        mask &= (path[:, None, :] == -1) | (path[:, None, :] == path[:, :, None])
    if layer_kinds(base_of(model)) == {"sliding_attention"}:
        window = model.config.sliding_window
        mask &= positions[:, :, None] - positions[:, None, :] < window
    inputs = {
        "input_ids": _pad([tree.tokens for tree in trees], pad_id).to(model.device),
        "position_ids": positions.to(model.device),
        "attention_mask": _mask_for(model, mask[:, None]).to(model.device),
    }
    # The output layer computes each place once, although all first tokens of a branch share one.
    cells = {
        cell: at
        for at, cell in enumerate(
            dict.fromkeys((row, place) for row, tree in enumerate(trees) for place in tree.places)
        )
    }
    logits = logits_at(
        model, inputs, [row for row, _ in cells], [place for _, place in cells]
    ).float()
    at, targets, owners = (
        torch.tensor(values, dtype=torch.long, device=logits.device)
        for values in (
            [cells[row, place] for row, tree in enumerate(trees) for place in tree.places],
            [token for tree in trees for token in tree.targets],
            _owners(trees),
        )
    )
    token_scores = logits[at, targets] - logits.logsumexp(-1)[at]
    num_leaves = sum(tree.num_leaves for tree in trees)
    return token_scores.new_zeros(num_leaves).index_add(0, owners, token_scores)


def _owners(trees: Sequence[_Tree]) -> list[int]:
    """Return the number of the continuation of each token to score, over all rows."""
    owners: list[int] = []
    start = 0
    for tree in trees:
        owners += [start + owner for owner in tree.owners]
        start += tree.num_leaves
    return owners


def _pad(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    table = torch.full((len(rows), max(map(len, rows))), padding, dtype=torch.long)
    for number, row in enumerate(rows):
        table[number, : len(row)] = torch.tensor(row, dtype=torch.long)
    return table


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
