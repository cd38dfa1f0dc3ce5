"""Functions on prompts and generated tokens that all engines share, so that they give the same
texts.

Nothing here knows a model or imports torch.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from medray.errors import DataError
from medray.text.detokenize import TextStream
from medray.types import Branch, Chunk, Sampling, TokenLogprob

Ids = Sequence[int]


def tokenize(tokenizer: Any, prompts: Sequence[str] | Sequence[Ids]) -> list[list[int]]:
    """Return the token ids of prompts. The name of a special token in a text counts as text."""
    return [
        list(
            tokenizer(row, split_special_tokens=True)["input_ids"] if isinstance(row, str) else row
        )
        for row in prompts
    ]


def check_continuations(prompts: Sequence[Ids], continuations: Sequence[Ids]) -> None:
    if not all(map(len, prompts)):
        raise DataError("a text has no tokens; give at least one word")
    if not continuations or not all(map(len, continuations)):
        raise DataError("an answer to choose from has no tokens; give at least one word")


def tail_length(continuations: Sequence[Ids]) -> int:
    """Return how many tokens follow a prompt. A continuation's last token is only predicted."""
    return sum(len(ids) - 1 for ids in continuations)


def tree_length(prompt: Ids, branches: Sequence[Branch]) -> int:
    """Return the length of a prompt with all its branches and their continuations."""
    return len(prompt) + sum(
        len(branch.tokens) + tail_length(branch.continuations) for branch in branches
    )


def sampling_of(sampling: Sampling, index: int) -> Sampling:
    """Return the sampling of the prompt at `index`, with its own seed where there is one."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + index)


def end_tokens(tokenizer: Any, config_ends: int | list[int] | None) -> set[int]:
    """Return the tokens that end an answer, from the tokenizer and the generation configuration."""
    return {
        tokenizer.eos_token_id,
        *(config_ends if isinstance(config_ends, list) else [config_ends]),
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
    """Turns the tokens of a row into chunks of text, until an end token, a stop string or the limit
    of tokens."""

    def __init__(self, tokenizer: Any, sampling: Sampling, ends: Collection[int]) -> None:
        self.num_tokens, self.finish = 0, ""
        self._text, self._ends, self._max_tokens = (
            TextStream(tokenizer, sampling.stop),
            ends,
            sampling.max_tokens,
        )
        self._piece, self._num_before = (
            "",
            0,
        )  # text after the last chunk, and the number of tokens before it
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
        """Finish at a limit, with the text that a stop string might have removed."""
        self._piece += self._text.end()
        self.finish = "stop" if self._text.has_stopped else "length"

    def take(self, index: int) -> Chunk | None:
        """Return the next chunk, or None while there is neither text nor a finish."""
        if not self._piece and not self.finish:
            return None
        num_tokens, logprobs = self.num_tokens - self._num_before, tuple(self._logprobs)
        chunk = Chunk(index, self._piece, self.finish or None, num_tokens, logprobs)
        self._piece, self._num_before, self._logprobs = "", self.num_tokens, []
        return chunk
