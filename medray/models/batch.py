"""The tensors of a batch for training and inference: padding, positions and attention.

Attention differs from transformers' only on a CPU, in two cases where PyTorch's kernel is slow.

Training in half precision: the backward pass in bf16 takes up to three times as long as in fp32.

Padded rows of an encoder: the kernel computes with padding too, which is a tenth of an encoder's
time, so rows are attended one by one. In bf16 the kernel takes up to three times as long where the
number of keys is no multiple of 16, so rows are padded to the next multiple."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

from medray.errors import DataError
from medray.models.families import ENCODERS, Side
from medray.models.libraries import quiet

ATTENTION = "medray"  # the name that transformers knows it by
_KEYS = 16
# numbers per token in a layer without gradients, as multiples of its widths, rounded up
_STATES, _INNER_STATES = 16, 4
_MOST_TOKENS = 1 << 17


def evaluation_tokens(network: Any, least: int, device: str) -> int:
    """Return the tokens of a batch without gradients: `least` on a CPU, and on a GPU as many as
    half of its free memory holds. A budget of training would leave most of a GPU idle there."""
    if device != "cuda":
        return least
    config = network.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    keys = 2 * config.num_hidden_layers * heads * size
    numbers = keys + _STATES * config.hidden_size + _INNER_STATES * inner + config.vocab_size
    free, total = torch.cuda.mem_get_info()
    tensors = torch.cuda.memory_allocated()
    free += torch.cuda.memory_reserved() - tensors
    part = torch.cuda.get_per_process_memory_fraction() * total - tensors
    return max(least, min(_MOST_TOKENS, int(min(free, part) / 2 / (4 * numbers))))


def check_rows(rows: Sequence[Sequence[int]]) -> None:
    num_empty = sum(not len(row) for row in rows)
    if num_empty:
        raise DataError(f"{num_empty} of {len(rows)} inputs have no tokens; remove empty texts")


def collate(
    rows: Sequence[Sequence[int] | npt.NDArray[np.int32]],
    pad_id: int,
    *,
    side: Side = "right",
    width: int = 0,
) -> dict[str, Tensor]:
    """Pad rows to the longest one or to `width`, and return ids and mask.

    The mask comes from lengths, since some models pad with their end-of-sequence token."""
    longest = max(width, *(len(row) for row in rows))
    input_ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        input_ids[number, place] = torch.from_numpy(np.array(row, dtype=np.int64))
        attention_mask[number, place] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def bf16_width(config: Any, longest: int) -> int:
    """Return the width of a batch in bf16 on a CPU."""
    is_ours = config._attn_implementation == ATTENTION and config.model_type in ENCODERS
    width = _round_up(longest)
    return width if is_ours and width <= config.max_position_embeddings else longest


def _round_up(length: int) -> int:
    return -(-length // _KEYS) * _KEYS


def logits_at(
    model: Any, inputs: Mapping[str, Tensor], rows: Sequence[int], positions: Sequence[int]
) -> Tensor:
    """Return a row of logits for each pair of row and position. The output layer computes only
    these."""
    place = inputs["input_ids"].device
    with _only(model, torch.tensor(rows, device=place), torch.tensor(positions, device=place)):
        logits: Tensor = model(**inputs, use_cache=False).logits
    assert logits.shape[:2] == (1, len(rows)), (
        "the output layer did not compute exactly the requested positions"
    )
    return logits[0]


@contextmanager
def _only(model: Any, rows: Tensor, positions: Tensor) -> Iterator[None]:
    # `logits_to_keep` takes one list of positions for all rows, while answers have other positions
    # in each row.
    def gather(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        (hidden,) = args
        return (hidden[rows, positions].unsqueeze(0),)

    handle = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def answer_places(
    lengths: Sequence[int], answers: Sequence[Sequence[tuple[int, int]]], width: int, *, left: bool
) -> tuple[list[int], list[int]]:
    """Return the rows and positions that predict the tokens of each row's answers: the position
    before each token."""
    rows: list[int] = []
    positions: list[int] = []
    for row, (length, spans) in enumerate(zip(lengths, answers, strict=True)):
        shift = width - length if left else 0
        for start, end in spans:
            assert 1 <= start < end <= length, "an answer needs a token, and one before it"
            rows += [row] * (end - start)
            positions += range(shift + start - 1, shift + end - 1)
    return rows, positions


def set_attention(model: Any) -> None:
    """Replace PyTorch's attention in a model that would use it."""
    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, _mask)
    with quiet():  # transformers warns about a model that supports no other attention
        model.set_attn_implementation(ATTENTION)


def _mask(*, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """Return the mask of tokens where rows can be attended one by one, or PyTorch's mask."""
    is_plain = (
        options["mask_function"] is bidirectional_mask_function and not torch.is_grad_enabled()
    )
    if (
        is_plain
        and attention_mask is not None
        and attention_mask.device.type == "cpu"
        and _is_padded_behind(attention_mask)
    ):
        return attention_mask
    mask: Tensor | None = sdpa_mask(attention_mask=attention_mask, **options)
    return mask


def _is_padded_behind(mask: Tensor) -> bool:
    """Return whether some rows are padded, and all of them at the end."""
    return not bool(mask.all()) and bool((mask[:, :-1] >= mask[:, 1:]).all())


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    if attention_mask is not None and attention_mask.dim() == 2:
        return _by_rows(
            query, key, value, attention_mask.sum(dim=1).tolist(), options.get("scaling")
        ), None
    is_half = torch.is_autocast_enabled("cpu") or value.dtype != torch.float32
    is_trained = query.requires_grad or key.requires_grad or value.requires_grad
    if value.device.type != "cpu" or not is_half or not is_trained:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):
        outputs, weights = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **options
        )
    return outputs.to(value.dtype), weights


def _by_rows(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scaling: float | None
) -> Tensor:
    # padding is not read, but must be finite
    outputs = torch.zeros_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
    for row, length in enumerate(lengths):
        end, mask = length, None
        if query.dtype == torch.bfloat16 and length < _round_up(length) <= query.shape[2]:
            end = _round_up(length)
            mask = query.new_zeros(1, 1, 1, end)
            mask[..., length:] = -torch.inf
        own = [tensor[row : row + 1, :, :end] for tensor in (query, key, value)]
        outputs[row, :end] = scaled_dot_product_attention(
            own[0], own[1], own[2], attn_mask=mask, scale=scaling
        )[0].transpose(0, 1)
    return outputs
