"""Integrated gradients: the share of each token in an output of a head.

The path goes from a row whose text is neutral, all mask tokens or full stops, to the row itself, in
the space of word embeddings. It cannot start at padding: that may be zero, where the first norm of
a decoder has no gradient that could be summed. Shares add up to the difference of the output
between the two ends, but for the error of the sum that stands for the integral (Sundararajan, Taly,
Yan: Axiomatic Attribution for Deep Networks)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medray.engines.transformers import TransformersEngine
from medray.models.precision import arithmetic
from medray.types import Floats

# Points of the path for Gauss-Legendre's rule. More are taken until the error is small: the
# network of a language model may bend sharply near the start.
_POINTS = (32, 128, 512)
_SMALL = 0.01  # of the sum of all shares without their signs


def token_shares(
    engine: TransformersEngine,
    row: Sequence[int],
    is_text: Sequence[bool],
    weights: Sequence[float],
) -> tuple[Floats, float]:
    """Return the share of each token in the weighted sum of a row's outputs, and the difference
    that the shares should add up to. Tokens that are no text keep their place on the whole path."""
    network, device = engine.network, engine.device
    ids = torch.tensor([list(row)], device=device)
    start = torch.where(torch.tensor([list(is_text)], device=device), _neutral(engine), ids)
    layer = network.get_input_embeddings()
    columns = torch.tensor(list(weights), dtype=torch.float32, device=device)
    with _without_dropout(network), torch.enable_grad():
        first, last = layer(start).detach(), layer(ids).detach()
        ends = _outputs(engine, layer, ids, torch.cat([first, last])).detach() @ columns
        difference = float(ends[1] - ends[0])
        for num_points in _POINTS:
            total = torch.zeros_like(last)
            places, parts = np.polynomial.legendre.leggauss(num_points)
            per_batch = max(1, engine.token_budget // len(row))
            for at in range(0, num_points, per_batch):
                place = torch.tensor((places[at : at + per_batch] + 1) / 2, device=device)
                part = torch.tensor(parts[at : at + per_batch] / 2, device=device)
                steps = (first + place[:, None, None].to(last) * (last - first)).requires_grad_()
                outputs = _outputs(engine, layer, ids, steps) @ columns
                (gradients,) = torch.autograd.grad((outputs * part.to(outputs)).sum(), steps)
                total += gradients.sum(0, keepdim=True)
            shares = ((last - first) * total).sum(-1)[0].double().cpu().numpy()
            if abs(shares.sum() - difference) <= _SMALL * np.abs(shares).sum():
                break
    return shares, difference


def _neutral(engine: TransformersEngine) -> int:
    """Return a token that says nothing about the text."""
    tokenizer = engine.tokenizer
    if tokenizer.mask_token_id is not None:
        return int(tokenizer.mask_token_id)
    return int(tokenizer(".", add_special_tokens=False)["input_ids"][-1])


@contextmanager
def _without_dropout(network: Any) -> Iterator[None]:
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def _outputs(engine: TransformersEngine, layer: Any, ids: Tensor, embeddings: Tensor) -> Tensor:
    """Return the head's outputs for embeddings in the place of those of the ids."""
    # on a GPU, frozen layers may be in 16 bits
    is_exact = engine.device.type == "cpu"
    context = nullcontext() if is_exact else arithmetic(engine.precision, engine.device.type)
    rows = ids.expand(len(embeddings), -1)
    hook = layer.register_forward_hook(lambda module, inputs, output: embeddings)
    try:
        with context:
            result = engine.network(input_ids=rows, attention_mask=torch.ones_like(rows))
    finally:
        hook.remove()
    outputs: Tensor = result.logits
    return outputs.float()
