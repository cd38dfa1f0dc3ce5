"""Decodes a row's tokens to text while they are generated. It never returns half a character or a
part of a possible stop string."""

from collections.abc import Sequence
from typing import Any

_REPLACEMENT = "�"  # a tokenizer decodes the first bytes of a character to this


class TextStream:
    """Turns tokens into text: `push` returns the text that is certain so far, and `end` the rest.
    Joined, the pieces are the text up to a stop string."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(filter(None, stop))
        self.has_stopped = False
        self._ids: list[int] = []
        self._start = 0  # decoding begins here, so that words are spelled as in their context
        self._end = 0  # the text of tokens before this was returned
        self._rest = ""

    def push(self, token: int) -> str:
        self._ids.append(token)
        before, whole = (
            self._decode(self._ids[self._start : self._end]),
            self._decode(self._ids[self._start :]),
        )
        if (
            whole.endswith(_REPLACEMENT)
            or not whole.startswith(before)
            or len(whole) == len(before)
        ):
            return ""
        self._start, self._end = self._end, len(self._ids)
        return self._sure(whole[len(before) :])

    def end(self) -> str:
        if self.has_stopped:
            return ""
        before, whole = (
            self._decode(self._ids[self._start : self._end]),
            self._decode(self._ids[self._start :]),
        )
        sure = self._sure(whole[len(before) :])
        rest, self._rest = self._rest, ""
        return sure if self.has_stopped else sure + rest

    def _sure(self, new: str) -> str:
        text = self._rest + new
        places = [place for place in map(text.find, self.stop) if place >= 0]
        if places:
            self.has_stopped, self._rest = True, ""
            return text[: min(places)]
        size = max((_beginning(text, word) for word in self.stop), default=0)
        self._rest = text[len(text) - size :]
        return text[: len(text) - size]

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def _beginning(text: str, word: str) -> int:
    """Return how many characters at the end of a text may be the beginning of `word`."""
    return next(
        (
            size
            for size in range(min(len(text), len(word) - 1), 0, -1)
            if text.endswith(word[:size])
        ),
        0,
    )
