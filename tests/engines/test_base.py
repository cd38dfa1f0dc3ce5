"""Tests of what all engines share: the text of a row as its tokens arrive, in pieces of any
size."""

from collections.abc import Sequence

import pytest

from medray.engines.base import GeneratedText, end_tokens, sampling_of
from medray.types import Chunk, Sampling, TokenLogprob

END = 0


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return bytes(ids).decode(errors="replace")


def chunks(tokens: Sequence[int], sampling: Sampling, size: int) -> list[Chunk]:
    """Return the chunks of tokens that arrive `size` at a time."""
    text, pieces = GeneratedText(Bytes(), sampling, {END}), list[Chunk]()
    for start in range(0, len(tokens), size):
        for token in tokens[start : start + size]:
            text.add(token, TokenLogprob(str(token), -1.0))
            if text.finish:
                break
        if chunk := text.take(7):
            pieces.append(chunk)
        if text.finish:
            break
    return pieces


@pytest.mark.parametrize(
    ("tokens", "sampling", "text", "finish", "num_tokens"),
    [
        ([*b"one two", END, *b"more"], Sampling(), "one two", "stop", 8),
        (b"one two three", Sampling(stop=("two",)), "one ", "stop", 7),
        (b"one two three", Sampling(max_tokens=5), "one t", "length", 5),
        (
            b"one t",
            Sampling(max_tokens=5, stop=("two",)),
            "one t",
            "length",
            5,
        ),  # what a stop string might have become
        (b"one two", Sampling(max_tokens=7, stop=("two",)), "one ", "stop", 7),
        ("5 µ".encode(), Sampling(max_tokens=3), "5 \ufffd", "length", 3),  # half a character
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_text_ends_alike_however_its_tokens_come(
    tokens: Sequence[int], sampling: Sampling, text: str, finish: str, num_tokens: int, size: int
) -> None:
    pieces = chunks(tokens, sampling, size)
    assert "".join(chunk.text for chunk in pieces) == text
    assert [chunk.finish for chunk in pieces] == [None] * (len(pieces) - 1) + [finish]
    assert sum(chunk.num_tokens for chunk in pieces) == num_tokens
    assert [one.text for chunk in pieces for one in chunk.logprobs] == [
        str(token) for token in tokens[:num_tokens]
    ]
    assert {chunk.index for chunk in pieces} == {7}


def test_a_text_that_a_window_cuts_gives_what_it_held_back() -> None:
    text = GeneratedText(Bytes(), Sampling(stop=("two",)), {END})
    for token in b"one t":
        text.add(token)
    before = text.take(0)
    assert before
    assert (before.text, before.finish) == ("one ", None)
    assert text.take(0) is None
    text.cut()
    assert text.take(0) == Chunk(0, "t", "length", 0)


def test_each_prompt_of_a_seed_has_its_own_and_every_end_counts() -> None:
    assert [sampling_of(Sampling(seed=3), at).seed for at in range(3)] == [3, 4, 5]
    assert sampling_of(Sampling(), 2).seed is None
    tokenizer = type("Tokenizer", (), {"eos_token_id": 1})
    assert [end_tokens(tokenizer, ends) for ends in (None, 2, [2, 3])] == [{1}, {1, 2}, {1, 2, 3}]
