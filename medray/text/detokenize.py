"""Text of a row while its tokens come: no half characters, and nothing of what may become a stop
string."""

from collections.abc import Sequence
from typing import Any

_BROKEN = "�"  # what a tokenizer says to the first bytes of a character


class TextStream:
    """`push` gives what is sure by now, `end` the rest. All pieces together are the text, cut
    before a stop string."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(filter(None, stop))
        self.has_stopped = False
        self._ids: list[int] = []
        self._start = self._end = (
            0  # tokens that words are spelled behind, and those whose text was taken
        )
        self._rest = ""

    def push(self, token: int) -> str:
        self._ids.append(token)
        before, whole = (
            self._decode(self._ids[self._start : self._end]),
            self._decode(self._ids[self._start :]),
        )
        if whole.endswith(_BROKEN) or not whole.startswith(before) or len(whole) == len(before):
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
    """How many characters at the end of a text may be the beginning of a word."""
    return next(
        (
            size
            for size in range(min(len(text), len(word) - 1), 0, -1)
            if text.endswith(word[:size])
        ),
        0,
    )
