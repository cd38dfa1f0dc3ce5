"""Encodes texts for a model with a head. Texts that are too long are cut or split into windows."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medray.errors import ConfigError

Keep = Literal["start", "end", "both"]
TokenList = list[int]


@dataclass(frozen=True, slots=True)
class Pieces:
    """One text as a single piece or as several windows."""

    tokens: list[tuple[int, ...]]
    truncated: bool
    length: int  # number of tokens of the whole text, with special tokens


def encode(texts: Iterable[str], tokenizer: Any, *, offsets: bool = False) -> Sequence[Any]:
    """Encode whole texts with special tokens, each as an `Encoding` of tokenizers; `offsets` adds
    the characters of each token."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            f"{type(tokenizer).__name__}: this tokenizer is pure Python; use a base model whose "
            "folder has a tokenizer.json"
        )
    # transformers would make lists of every text's masks, which takes as long as some tokens.
    # encode_special_tokens: a text that spells "[SEP]" or "<|im_end|>" must not end the sequence.
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if not backend.encode_special_tokens:
        backend.encode_special_tokens = True
    encodings: Sequence[Any] = (
        backend.encode_batch(list(texts)) if offsets else backend.encode_batch_fast(list(texts))
    )
    return encodings


def count_special(encodings: Iterable[Any]) -> tuple[int, int]:
    """Return the number of special tokens before and after each text, which a tokenizer adds to
    every text. Without any text they all count as before."""
    mask: TokenList = []
    for encoding in encodings:
        mask = encoding.special_tokens_mask
        if 0 in mask:
            return mask.index(0), mask[::-1].index(0)
    return len(mask), 0


def pieces(
    texts: Sequence[str], tokenizer: Any, *, max_length: int, keep: Keep, overlap: int | None
) -> list[Pieces]:
    """Encode each text in pieces of at most `max_length` tokens. With an `overlap` a long text
    becomes windows; without it, `keep` says which part is kept."""
    if not texts:
        return []
    length = readable(max_length, tokenizer)
    encodings = encode(texts, tokenizer)
    special = count_special(encoding for encoding in encodings if len(encoding) > length)
    rows = []
    for encoding in encodings:
        ids = encoding.ids
        if len(ids) <= length:
            rows.append(Pieces([tuple(ids)], truncated=False, length=len(ids)))
            continue
        before, body, after = _parts(ids, special)
        room = length - len(before) - len(after)
        _check_room(room, overlap, length)
        bodies = [cut(body, room, keep)] if overlap is None else slide(body, room, overlap)
        tokens = [(*before, *part, *after) for part in bodies]
        rows.append(Pieces(tokens, truncated=overlap is None, length=len(ids)))
    return rows


@dataclass(frozen=True, slots=True)
class TokenWindows:
    """One text in windows, with the place of each token in the text."""

    windows: list[tuple[int, ...]]
    places: list[tuple[int, ...]]  # per window: index of each token in `offsets`; -1 if special
    offsets: list[tuple[int, int]]  # first and last character per token of the text
    length: int  # number of tokens of the whole text, with special tokens

    def owners(self) -> list[int]:
        """Return for each token the window in which it is farthest from an edge. Only this window's
        prediction counts for the token."""
        windows, depths = [-1] * len(self.offsets), [-1] * len(self.offsets)
        for number, places in enumerate(self.places):
            inside = [place for place in places if place >= 0]
            for at, place in enumerate(inside):
                depth = min(at, len(inside) - 1 - at)
                if depth > depths[place]:
                    windows[place], depths[place] = number, depth
        return windows


def token_windows(
    texts: Sequence[str],
    tokenizer: Any,
    *,
    max_length: int,
    overlap: int | None,
    keep: Keep = "start",
) -> list[TokenWindows]:
    """Encode texts with the place of each token. With an `overlap` a long text becomes windows;
    without it, `keep` says which part is the only one."""
    if not texts:
        return []
    length = readable(max_length, tokenizer)
    encodings = encode(texts, tokenizer, offsets=True)
    special = count_special(encodings)
    rows = []
    for encoding in encodings:
        ids = encoding.ids
        if len(ids) <= sum(special):
            rows.append(TokenWindows([tuple(ids)], [(-1,) * len(ids)], [], len(ids)))
            continue
        before, body, after = _parts(ids, special)
        spans = encoding.offsets[len(before) : len(before) + len(body)]
        room = length - len(before) - len(after)
        windows = [list(range(len(body)))]
        if len(body) > room:
            _check_room(room, overlap, length)
            whole = windows[0]
            windows = [cut(whole, room, keep)] if overlap is None else slide(whole, room, overlap)
        tokens = [(*before, *(body[place] for place in window), *after) for window in windows]
        places = [(*[-1] * len(before), *window, *[-1] * len(after)) for window in windows]
        rows.append(TokenWindows(tokens, places, spans, len(ids)))
    return rows


def readable(max_length: int, tokenizer: Any) -> int:
    """Return `max_length`, or the tokenizer's limit if that is lower: more tokens would fail inside
    the model. A tokenizer without a limit has 1e30."""
    limit = int(tokenizer.model_max_length)
    if 0 < limit < max_length:
        warnings.warn(
            f"max_length {max_length}: the tokenizer of this base model allows {limit}, which is "
            "used instead",
            stacklevel=4,
        )
        return limit
    return max_length


def _check_room(room: int, overlap: int | None, length: int) -> None:
    if room <= (overlap or 0):
        rest = (
            "special tokens" if overlap is None else f"special tokens and window_overlap {overlap}"
        )
        raise ConfigError(f"max_length: {length} leaves no room for text besides {rest}")


def _parts(ids: TokenList, special: tuple[int, int]) -> tuple[TokenList, TokenList, TokenList]:
    """Split ids into special tokens before the text, the text, and special tokens after it."""
    start, end = special[0], len(ids) - special[1]
    return ids[:start], ids[start:end], ids[end:]


def cut(body: TokenList, room: int, keep: Keep) -> TokenList:
    """Return `room` tokens of a text: from its start, its end or both."""
    head = {"start": room, "end": 0, "both": (room + 1) // 2}[keep]
    return body[:head] + body[len(body) - (room - head) :]


def slide(body: TokenList, room: int, overlap: int) -> list[TokenList]:
    """Return full windows. The last one ends with the text, so that it has as much context as the
    others."""
    last = len(body) - room
    starts = [*range(0, last, room - overlap), last]
    return [body[start : start + room] for start in starts]
