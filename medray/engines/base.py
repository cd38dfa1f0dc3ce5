"""What engines do alike with prompts and generated tokens, so that all give the same texts. Knows
no model and imports no torch."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from medray.errors import DataError
from medray.text.detokenize import TextStream
from medray.types import Chunk, Sampling, TokenLogprob

Ids = Sequence[int]


def tokenize(tokenizer: Any, prompts: Sequence[str] | Sequence[Ids]) -> list[list[int]]:
    """The token ids of prompts. The name of a special token in a text is read as text."""
    return [
        list(
            tokenizer(row, split_special_tokens=True)["input_ids"] if isinstance(row, str) else row
        )
        for row in prompts
    ]


def check_continuations(prompts: Sequence[Ids], continuations: Sequence[Ids]) -> None:
    if not all(map(len, prompts)) or not continuations or not all(map(len, continuations)):
        raise DataError("a prompt and its continuations need at least one token each")


def sampling_of(sampling: Sampling, index: int) -> Sampling:
    """The sampling of the prompt at `index`: with a seed, each prompt has its own."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + index)


def end_tokens(tokenizer: Any, configured: int | list[int] | None) -> set[int]:
    """The tokens that end an answer: the tokenizer's, and those of a generation configuration."""
    return {
        tokenizer.eos_token_id,
        *(configured if isinstance(configured, list) else [configured]),
    } - {None}


def token_logprob(
    tokenizer: Any, token: int, logprob: float, top: Iterable[tuple[int, float]]
) -> TokenLogprob:
    return TokenLogprob(
        tokenizer.decode([token]),
        logprob,
        tuple((tokenizer.decode([other]), value) for other, value in top),
    )


class GeneratedText:
    """The tokens of one row as chunks of text, until an end token, a stop string or the limit of
    tokens finishes it."""

    def __init__(self, tokenizer: Any, sampling: Sampling, ends: Collection[int]) -> None:
        self.num_tokens, self.finish = 0, ""
        self._text, self._ends, self._max_tokens = (
            TextStream(tokenizer, sampling.stop),
            ends,
            sampling.max_tokens,
        )
        self._piece, self._num_before = "", 0  # text since the last chunk, and tokens up to it
        self._logprobs: list[TokenLogprob] = []

    def add(self, token: int, logprob: TokenLogprob | None = None) -> None:
        self.num_tokens += 1
        if logprob:
            self._logprobs.append(logprob)
        if token in self._ends:
            self._piece += self._text.end()
            self.finish = "stop"
            return
        self._piece += self._text.push(token)
        if self._text.has_stopped:
            self.finish = "stop"
        elif self.num_tokens >= self._max_tokens:
            self.cut()

    def cut(self) -> None:
        """Finish at a limit, with the text that was not sure."""
        self._piece += self._text.end()
        self.finish = "stop" if self._text.has_stopped else "length"

    def take(self, index: int) -> Chunk | None:
        """The chunk since the last one, or None while there is neither text nor a finish."""
        if not self._piece and not self.finish:
            return None
        num_tokens, logprobs = self.num_tokens - self._num_before, tuple(self._logprobs)
        chunk = Chunk(index, self._piece, self.finish or None, num_tokens, logprobs)
        self._piece, self._num_before, self._logprobs = "", self.num_tokens, []
        return chunk
