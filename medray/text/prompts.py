"""Prompts and answers as token ids: the prompt's own words are never cut, and every answer is the
same tokens behind each prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medray.errors import ConfigError
from medray.text.windows import Keep, TokenList, cut, readable, tokenize


@dataclass(frozen=True, slots=True)
class Prompt:
    tokens: tuple[int, ...]
    truncated: bool
    dropped: tuple[int, int] | None = None  # the characters of the text that were cut out


def prompts(
    texts: Sequence[str],
    tokenizer: Any,
    *,
    around: tuple[str, str],
    max_length: int,
    answer: int,
    keep: Keep,
) -> list[Prompt]:
    """Each text between the two literals `around` it, of at most `max_length` tokens with room for
    an answer of `answer` tokens."""
    if not texts:
        return []
    before, after = around
    room = readable(max_length, tokenizer) - answer
    # Read whole, so that words at the seams are the tokens they are elsewhere.
    encoded = tokenize((before + text + after for text in texts), tokenizer, offsets=True)
    columns = (encoded["input_ids"], encoded["special_tokens_mask"], encoded["offset_mapping"])
    rows = []
    for text, ids, special, offsets in zip(texts, *columns, strict=True):
        ids, special = _open_ended(ids, special)
        if len(ids) <= room:
            rows.append(Prompt(tuple(ids), truncated=False))
            continue
        last = len(before) + len(text)
        inside = [
            not mark and len(before) < end <= last
            for mark, (_, end) in zip(special, offsets, strict=False)
        ]
        body = [token for token, is_text in zip(ids, inside, strict=True) if is_text]
        left = room - (len(ids) - len(body))
        if left < 1:
            raise ConfigError(
                f"max_length {max_length} leaves no room for text beside the prompt's own "
                f"{len(ids) - len(body)} tokens and the answer's {answer}"
            )
        start = inside.index(True)
        places = cut(list(range(len(body))), left, keep)
        gap = start + next((place for place, number in enumerate(places) if place != number), left)
        dropped = (
            offsets[gap][0] - len(before),
            offsets[gap + len(body) - left - 1][1] - len(before),
        )
        tokens = (*ids[:start], *(body[place] for place in places), *ids[start + len(body) :])
        rows.append(Prompt(tokens, truncated=True, dropped=dropped))
    return rows


def answers(texts: Sequence[str], tokenizer: Any, *, lead: str, end: bool) -> list[tuple[int, ...]]:
    """Each answer as it is spelled behind `lead`, the last words of the prompt; with `end` the end
    of sequence behind it."""
    before = _plain([lead], tokenizer)[0]
    rows = []
    for whole, alone in zip(
        _plain([lead + text for text in texts], tokenizer), _plain(texts, tokenizer), strict=True
    ):
        # Where the seam is inside a token, the answer is read by itself.
        ids = (
            whole[len(before) :]
            if whole[: len(before)] == before and len(whole) > len(before)
            else alone
        )
        rows.append((*ids, tokenizer.eos_token_id) if end else tuple(ids))
    return rows


def _plain(texts: Sequence[str], tokenizer: Any) -> list[TokenList]:
    encoded = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
    )
    ids: list[TokenList] = encoded["input_ids"]
    return ids


def _open_ended(ids: TokenList, special: TokenList) -> tuple[TokenList, TokenList]:
    """Without the special tokens at the end: some tokenizers close every text, and an answer is to
    follow."""
    end = len(ids)
    while end and special[end - 1]:
        end -= 1
    return ids[:end], special[:end]
