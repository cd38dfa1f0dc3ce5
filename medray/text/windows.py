"""A text as the token ids that a headed model reads: special tokens in place, and what is too long
cut or split in windows."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medray.errors import ConfigError

Keep = Literal["start", "end", "both"]
TokenList = list[int]


@dataclass(frozen=True, slots=True)
class Pieces:
    """One text: a single piece, or several windows of it."""

    tokens: list[tuple[int, ...]]
    truncated: bool


def tokenize(texts: Iterable[str], tokenizer: Any, *, offsets: bool) -> Any:
    """Whole texts with their special tokens, a mask of these and, with `offsets`, each token's
    characters."""
    # split_special_tokens: a text that spells "[SEP]" or "<|im_end|>" is text, and must not end the
    # sequence. Special tokens are added before cutting and told apart by the mask, because
    # transformers 5 has no way to add them to ids.
    return tokenizer(
        list(texts),
        split_special_tokens=True,
        return_special_tokens_mask=True,
        return_offsets_mapping=offsets,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )


def pieces(
    texts: Sequence[str], tokenizer: Any, *, max_length: int, keep: Keep, overlap: int | None
) -> list[Pieces]:
    """Pieces of at most `max_length` tokens; with an `overlap` windows, without one what `keep`
    says."""
    if not texts:
        return []
    length = readable(max_length, tokenizer)
    encoded = tokenize(texts, tokenizer, offsets=False)
    rows = []
    for ids, mask in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        if len(ids) <= length:
            rows.append(Pieces([tuple(ids)], truncated=False))
            continue
        before, body, after = _parts(ids, mask)
        room = length - len(before) - len(after)
        _check_room(room, overlap, length)
        bodies = [cut(body, room, keep)] if overlap is None else slide(body, room, overlap)
        rows.append(
            Pieces([(*before, *part, *after) for part in bodies], truncated=overlap is None)
        )
    return rows


@dataclass(frozen=True, slots=True)
class TokenWindows:
    """One text in windows, and where each of their tokens stands."""

    windows: list[tuple[int, ...]]
    places: list[tuple[int, ...]]  # of each window's tokens among `offsets`; -1 for special tokens
    offsets: list[tuple[int, int]]  # characters of each token of the text

    def owners(self) -> list[int]:
        """For each token of the text the window that it lies deepest in: there it is judged, and it
        counts once."""
        windows, depths = [-1] * len(self.offsets), [-1] * len(self.offsets)
        for number, places in enumerate(self.places):
            inside = [place for place in places if place >= 0]
            for at, place in enumerate(inside):
                depth = min(at, len(inside) - 1 - at)
                if depth > depths[place]:
                    windows[place], depths[place] = number, depth
        return windows


def token_windows(
    texts: Sequence[str], tokenizer: Any, *, max_length: int, overlap: int
) -> list[TokenWindows]:
    """As `pieces` in windows, for tasks that answer for each token."""
    if not texts:
        return []
    length = readable(max_length, tokenizer)
    encoded = tokenize(texts, tokenizer, offsets=True)
    rows = []
    for ids, mask, offsets in zip(
        encoded["input_ids"], encoded["special_tokens_mask"], encoded["offset_mapping"], strict=True
    ):
        if all(mask):
            rows.append(TokenWindows([tuple(ids)], [(-1,) * len(ids)], []))
            continue
        before, body, after = _parts(ids, mask)
        spans = [tuple(pair) for pair in offsets[len(before) : len(before) + len(body)]]
        room = length - len(before) - len(after)
        windows = [list(range(len(body)))]
        if len(body) > room:
            _check_room(room, overlap, length)
            windows = slide(windows[0], room, overlap)
        tokens = [(*before, *(body[place] for place in window), *after) for window in windows]
        places = [(*[-1] * len(before), *window, *[-1] * len(after)) for window in windows]
        rows.append(TokenWindows(tokens, places, spans))
    return rows


def readable(max_length: int, tokenizer: Any) -> int:
    """The tokenizer knows how many positions its model has (or says 1e30); more would fail inside
    the model."""
    limit = int(tokenizer.model_max_length)
    if 0 < limit < max_length:
        warnings.warn(
            f"max_length {max_length}: the tokenizer of this base model allows {limit}, which is "
            "used",
            stacklevel=4,
        )
        return limit
    return max_length


def _check_room(room: int, overlap: int | None, length: int) -> None:
    if room <= (overlap or 0):
        needed = (
            "special tokens" if overlap is None else f"special tokens and window_overlap {overlap}"
        )
        raise ConfigError(f"max_length {length} leaves no room for text beside {needed}")


def _parts(ids: TokenList, mask: TokenList) -> tuple[TokenList, TokenList, TokenList]:
    """Special tokens before, the text, special tokens after."""
    start = mask.index(0)
    end = len(mask) - mask[::-1].index(0)
    return ids[:start], ids[start:end], ids[end:]


def cut(body: TokenList, room: int, keep: Keep) -> TokenList:
    """As much of a text as there is room for."""
    head = {"start": room, "end": 0, "both": (room + 1) // 2}[keep]
    return body[:head] + body[len(body) - (room - head) :]


def slide(body: TokenList, room: int, overlap: int) -> list[TokenList]:
    """Full windows; the last is moved back to the end of the text, so that none is a few tokens
    without context."""
    last = len(body) - room
    starts = [*range(0, last, room - overlap), last]
    return [body[start : start + room] for start in starts]
