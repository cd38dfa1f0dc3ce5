"""Integrated gradients: the share of each token in an output of a head.

The path goes from a row whose text is neutral, all mask tokens or full stops, to the row itself, in
the space of word embeddings. It cannot start at padding: that may be zero, where the first norm of
a decoder has no gradient that could be summed. Shares add up to the difference of the output
between the two ends, but for the error of the sum that stands for the integral (Sundararajan, Taly,
Yan: Axiomatic Attribution for Deep Networks)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

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
LEAST_POINTS = _POINTS[0] + 2  # readings of a row, with both ends of the path

Result = TypeVar("Result")


class PassCaller(Protocol):
    """Calls one pass of a network, perhaps in another thread, and returns what it returns."""

    def __call__(self, step: Callable[[], Result], /) -> Result: ...


def run_now(step: Callable[[], Result], /) -> Result:
    return step()


def token_shares(
    engine: TransformersEngine,
    row: Sequence[int],
    is_text: Sequence[bool],
    weights: Sequence[float],
    *,
    most_points: int | None = None,
    run: PassCaller = run_now,
) -> tuple[Floats, float]:
    """Return the share of each token in the weighted sum of a row's outputs, and the difference
    that the shares should add up to. Tokens that are no text keep their place on the whole path.

    The row is read at `most_points` points at most, which are `LEAST_POINTS` or more."""
    ids = torch.tensor([list(row)], device=engine.device)
    start = torch.where(torch.tensor([list(is_text)], device=engine.device), _neutral(engine), ids)
    columns = torch.tensor(list(weights), dtype=torch.float32, device=engine.device)
    path = run(lambda: _Path.of(engine, ids, start, columns))
    num_read = 2
    for num_points in _POINTS:
        num_read += num_points
        if num_points != _POINTS[0] and most_points is not None and num_read > most_points:
            break
        total = torch.zeros_like(path.last)
        places, parts = np.polynomial.legendre.leggauss(num_points)
        per_batch = max(1, engine.token_budget // len(row))
        for at in range(0, num_points, per_batch):
            batch = slice(at, at + per_batch)
            total += run(partial(path.gradients, (places[batch] + 1) / 2, parts[batch] / 2))
        shares = ((path.last - path.first) * total).sum(-1)[0].double().cpu().numpy()
        if abs(shares.sum() - path.difference) <= _SMALL * np.abs(shares).sum():
            break
    return shares, path.difference


@dataclass(frozen=True)
class _Path:
    """The straight line between the embeddings of a neutral row and those of the row itself."""

    engine: TransformersEngine
    layer: Any  # of the embeddings
    ids: Tensor
    columns: Tensor  # the weights of the outputs
    first: Tensor
    last: Tensor
    difference: float  # of the output between the two ends

    @classmethod
    def of(cls, engine: TransformersEngine, ids: Tensor, start: Tensor, columns: Tensor) -> "_Path":
        layer = engine.network.get_input_embeddings()
        with _without_dropout(engine.network), torch.no_grad():
            first, last = layer(start), layer(ids)
            ends = _outputs(engine, layer, ids, torch.cat([first, last])) @ columns
        return cls(engine, layer, ids, columns, first, last, float(ends[1] - ends[0]))

    def gradients(self, places: Floats, parts: Floats) -> Tensor:
        """Return the gradients at some places of the path, summed by their parts of it."""
        place = torch.tensor(places, device=self.ids.device)
        part = torch.tensor(parts, device=self.ids.device)
        with _without_dropout(self.engine.network), torch.enable_grad():
            step = place[:, None, None].to(self.last) * (self.last - self.first)
            steps = (self.first + step).requires_grad_()
            outputs = _outputs(self.engine, self.layer, self.ids, steps) @ self.columns
            (gradients,) = torch.autograd.grad((outputs * part.to(outputs)).sum(), steps)
        return gradients.sum(0, keepdim=True)


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
