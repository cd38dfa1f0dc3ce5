"""Generates rows together: rows join between steps with prompts of any length, and leave at their
end. A model whose layers store more than keys and values reads its rows one by one.

Each row has its own positions, random numbers and end, so its text is the same as alone. Nothing
here knows a task or a thread.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from medray.engines.base import GeneratedText, end_tokens, token_logprob
from medray.models.architecture import check_generation, has_only_attention
from medray.models.batch import collate
from medray.models.libraries import base_of
from medray.types import Chunk, Sampling, TokenLogprob


class RowError(Exception):
    """The error that ended one row. The other rows continue."""

    def __init__(self, index: int, reason: Exception) -> None:
        super().__init__(index, reason)
        self.index, self.reason = index, reason


@dataclass(eq=False)
class GenerationRow:
    """One prompt and its text so far."""

    index: int
    prompt: Sequence[int]
    sampling: Sampling
    text: GeneratedText
    # for sampling; the same seed gives the same text in any batch
    numbers: torch.Generator | None = None
    last: int = -1  # last token of the text, which the next step reads

    @property
    def reads_logits(self) -> bool:
        return self.numbers is not None or self.sampling.logprobs is not None

    @property
    def length(self) -> int:
        """Return the number of tokens in the cache."""
        return len(self.prompt) + max(0, self.text.num_tokens - 1)

    @property
    def most(self) -> int:
        """Return the maximum number of tokens."""
        return len(self.prompt) + self.sampling.max_tokens


class Generation:
    def __init__(
        self, model: Any, tokenizer: Any, computing: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.model, self.tokenizer, self._computing = model, tokenizer, computing
        network = base_of(model)
        check_generation(network, "generation")
        self._shares_cache = has_only_attention(network)
        parameters = inspect.signature(network.forward).parameters
        self._positions, self._last_only = (
            "position_ids" in parameters,
            "logits_to_keep" in parameters,
        )
        # of new rows
        self.ends = end_tokens(tokenizer, model.generation_config.eos_token_id)
        self.rows: list[GenerationRow] = []
        self.cache: RowCache | SeparateCaches | None = None

    def row(self, index: int, prompt: Sequence[int], sampling: Sampling) -> GenerationRow:
        numbers = None
        if sampling.temperature > 0:
            numbers = torch.Generator()
            numbers.seed() if sampling.seed is None else numbers.manual_seed(
                sampling.seed % (1 << 63)
            )
        return GenerationRow(
            index, prompt, sampling, GeneratedText(self.tokenizer, sampling, self.ends), numbers
        )

    def admit(self, waiting: Sequence[GenerationRow], token_budget: int) -> list[GenerationRow]:
        """Return the first waiting rows whose keys and values fit the budget until their end.

        Padding counts. A single row may exceed the budget.
        """
        rows: list[GenerationRow] = []
        longest = max((row.most for row in self.rows), default=0)
        for row in waiting:
            longest = max(longest, row.most)
            together = len(self.rows) + len(rows) + 1
            if together > 1 and together * longest > token_budget:
                break
            rows.append(row)
        return rows

    def join(self, rows: Sequence[GenerationRow]) -> list[Chunk | RowError]:
        """Read the prompts of new rows, and generate the first token of each.

        A failure does not change the rows before.
        """
        inputs = collate([row.prompt for row in rows], self.tokenizer.pad_token_id, side="left")
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        cache = (
            RowCache() if self._shares_cache else SeparateCaches.of(len(rows), self.model.config)
        )
        with self._computing():
            try:
                logits = self._forward(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), cache)
            except Exception as err:  # such as out of memory, which changes no other row
                return [RowError(row.index, err) for row in rows]
            if self.cache is None:
                self.cache = cache
            else:
                self.cache.join(cache)
            self.rows += rows
            return self._accept(rows, logits)

    def step(self) -> list[Chunk | RowError]:
        """Generate one more token for every row."""
        lengths = torch.tensor([row.length for row in self.rows])
        ids = torch.tensor([[row.last] for row in self.rows])
        places = torch.arange(int(lengths.max()) + 1)
        mask = (places >= (lengths.max() - lengths)[:, None]).long()
        with self._computing():
            return self._accept(self.rows, self._forward(ids, mask, lengths[:, None], self.cache))

    def drop(self, rows: Iterable[GenerationRow]) -> None:
        """Remove rows that need no more text."""
        ids = {id(row) for row in rows}
        remaining = [at for at, row in enumerate(self.rows) if id(row) not in ids]
        if len(remaining) == len(self.rows):
            return
        self.rows = [self.rows[at] for at in remaining]
        if not remaining:
            self.cache = None
        elif self.cache is not None:
            self.cache.keep(remaining, max(row.length for row in self.rows))

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        if isinstance(cache, SeparateCaches):
            lengths = mask.sum(1).tolist()
            alone = [  # without padding
                (
                    ids[at : at + 1, -length:],
                    mask[at : at + 1, -length:],
                    positions[at : at + 1, -length:],
                )
                for at, length in enumerate(lengths)
            ]
            return torch.cat(
                [self._forward(*row, own) for row, own in zip(alone, cache.rows, strict=True)]
            )
        place = self.model.device
        optional: dict[str, Any] = {}
        if self._positions:
            optional["position_ids"] = positions.to(place)
        if self._last_only:
            optional["logits_to_keep"] = 1
        # Without padding the mask is not needed, and attention is faster without one.
        whole = None if bool(mask.all()) and self._positions else mask.to(place)
        outputs = self.model(
            input_ids=ids.to(place),
            attention_mask=whole,
            past_key_values=cache,
            use_cache=True,
            **optional,
        )
        logits: Tensor = outputs.logits[:, -1].float()
        return logits

    def _accept(self, rows: Sequence[GenerationRow], logits: Tensor) -> list[Chunk | RowError]:
        greedy = logits.argmax(-1).cpu().tolist()
        # A step without sampling moves one number per row, not a whole vocabulary.
        reading = [at for at, row in enumerate(rows) if row.reads_logits]
        to_read = dict(zip(reading, logits[reading].cpu(), strict=True)) if reading else {}
        chunks: list[Chunk | RowError] = []
        for at, (row, best) in enumerate(zip(rows, greedy, strict=True)):
            try:
                self._add_token(row, to_read.get(at), best)
            except Exception as err:  # such as logits that are NaN
                row.text.finish = "error"
                chunks.append(RowError(row.index, err))
                continue
            chunk = row.text.take(row.index)
            if chunk is not None:
                chunks.append(chunk)
        self.drop([row for row in rows if row.text.finish])
        return chunks

    def _add_token(self, row: GenerationRow, logits: Tensor | None, best: int) -> None:
        """Add the token of a row. A greedy row without log-probabilities needs no logits."""
        row.last, logprob = best, None
        if logits is not None:
            if row.numbers is not None:
                row.last = draw(logits, row.sampling, row.numbers)
            if row.sampling.logprobs is not None:
                logprob = self._logprob(logits, row.last, row.sampling.logprobs)
        row.text.add(row.last, logprob)

    def _logprob(self, logits: Tensor, token: int, num_top: int) -> TokenLogprob:
        logprobs = logits.log_softmax(-1)
        values, ids = logprobs.topk(min(num_top, len(logprobs)))
        return token_logprob(
            self.tokenizer,
            token,
            float(logprobs[token]),
            zip(ids.tolist(), values.tolist(), strict=True),
        )


def draw(logits: Tensor, sampling: Sampling, numbers: torch.Generator) -> int:
    """Draw a token from the smallest set of tokens with a probability of `top_p`."""
    probabilities = (logits / sampling.temperature).softmax(-1)
    if sampling.top_p >= 1:
        return int(probabilities.multinomial(1, generator=numbers))
    descending, ids = probabilities.sort(descending=True)
    nucleus = descending * (descending.cumsum(-1) - descending < sampling.top_p)
    nucleus[0] = descending[0]  # however small top_p is
    return int(ids[nucleus.multinomial(1, generator=numbers)])


_SLACK = 64  # tokens of room per allocation, which copies all keys and values


class _Layer(DynamicLayer):
    """Writes in place, while transformers' layer copies all keys and values at every token."""

    is_initialized: bool

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        # Rotary positions leave keys in fp32, and attention would cast all of them at every step.
        key_states = key_states.to(value_states.dtype)
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.keys, self.values = key_states, value_states
            self._wide: tuple[Tensor, Tensor] | None = None
            return self.keys, self.values
        length, new = self.keys.shape[-2], key_states.shape[-2]
        if self._wide is None or self._wide[0].shape[-2] < length + new:
            self._wide = (_wider(self.keys, new + _SLACK), _wider(self.values, new + _SLACK))
        for wide, states in zip(self._wide, (key_states, value_states), strict=True):
            wide[..., length : length + new, :] = states
        self.keys, self.values = (wide[..., : length + new, :] for wide in self._wide)
        return self.keys, self.values

    def replace(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self._wide = keys, values, None


class RowCache(Cache):
    """The keys and values of all rows together."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_Layer)

    def join(self, other: Any) -> None:
        """Append the rows of another cache, padded on the left to the longer of the two."""
        longest = max(self.get_seq_length(), other.get_seq_length())
        for mine, its in zip(self.layers, other.layers, strict=True):
            keys = torch.cat([_pad(mine.keys, longest), _pad(its.keys, longest)])
            mine.replace(keys, torch.cat([_pad(mine.values, longest), _pad(its.values, longest)]))

    def keep(self, rows: Sequence[int], length: int) -> None:
        """Keep only some rows, and their last `length` positions: earlier ones are padding in
        all."""
        index = torch.tensor(rows, device=self.layers[0].keys.device)
        for layer in self.layers:
            layer.replace(
                *(
                    states[index, :, states.shape[-2] - length :]
                    for states in (layer.keys, layer.values)
                )
            )


@dataclass
class SeparateCaches:
    """A cache per row, for layers whose states padding or other rows might change."""

    rows: list[Cache]

    @classmethod
    def of(cls, num_rows: int, config: Any) -> Self:
        return cls([DynamicCache(config=config) for _ in range(num_rows)])

    def join(self, other: Any) -> None:
        self.rows += other.rows

    def keep(self, rows: Sequence[int], length: int) -> None:
        self.rows = [self.rows[at] for at in rows]


def _wider(states: Tensor, room: int) -> Tensor:
    rows, heads, length, size = states.shape
    wide = states.new_empty(rows, heads, length + room, size)
    wide[..., :length, :] = states
    return wide


def _pad(states: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[-2], 0))
