"""A head that reads the mean of the last layer's states, instead of the state of one token."""

from dataclasses import fields
from typing import Any

from torch import Tensor


def pool_means(network: Any) -> set[str]:
    """Let the head of a network read the mean state of a row's tokens, without padding. A pooler,
    which reads the first token, is removed. Return the names of its weights."""
    prefix = network.base_model_prefix
    body = getattr(network, prefix)
    pooler = getattr(body, "pooler", None)
    names = {f"{prefix}.pooler.{name}" for name in pooler.state_dict()} if pooler else set()
    if pooler:
        body.pooler = None
    body.register_forward_hook(_put_means, with_kwargs=True)
    return names


def _put_means(body: Any, inputs: Any, options: dict[str, Any], output: Any) -> Any:
    """Put the mean state in the place of every token, so that any token is the mean."""
    states, mask = output.last_hidden_state, options["attention_mask"]
    mean = mean_states(states, mask)
    values = {field.name: getattr(output, field.name) for field in fields(output)}
    values["last_hidden_state"] = mean[:, None].expand_as(states)
    if "pooler_output" in values:
        values["pooler_output"] = mean
    return type(output)(**values)


def mean_states(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean state of each row over the tokens of its mask, summed in fp32."""
    weights = mask[..., None].float()
    means = (states.float() * weights).sum(dim=1) / weights.sum(dim=1)
    return means.to(states.dtype)
